// The page: a photo or the camera in, the overlay with its legend out.

import {colourLabels, shares} from './pixels.js';
import {Segmenter} from './segmenter.js';

const LARGEST = 1600; // pixels of the shown picture's long side
const element = (id) => document.getElementById(id);
const canvas = element('picture'), video = element('video'), stage = element('stage');
let segmenter, shown, streaming = false;

function fail(error) {
  element('error').textContent = error.message ?? String(error);
  element('error').hidden = false;
}

/** Draws the picture that was segmented last, and its colours over it. */
function draw() {
  if (!shown) return;
  const context = canvas.getContext('2d');
  [canvas.width, canvas.height] = [shown.photo.width, shown.photo.height];
  context.putImageData(shown.photo, 0, 0);
  context.globalAlpha = element('opacity').value / 100;
  context.imageSmoothingEnabled = false;
  context.drawImage(shown.colours, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
}

function list(labels) {
  element('legend').replaceChildren(...shares(labels, segmenter.classes.length).map(({id, share}) => {
    const item = document.createElement('li'), colour = document.createElement('span');
    colour.style.background = `rgb(${segmenter.palette[id].join(' ')})`;
    item.append(colour, `${segmenter.classes[id]} ${(100 * share).toFixed(1)} %`);
    return item;
  }));
}

/** Segments an image, video frame or bitmap, and shows it. */
async function show(source, width, height) {
  const factor = Math.min(1, LARGEST / Math.max(width, height));
  const pad = new OffscreenCanvas(Math.max(1, Math.round(width * factor)), Math.max(1, Math.round(height * factor)));
  const context = pad.getContext('2d', {willReadFrequently: true});
  context.fillStyle = '#fff'; // behind what is transparent
  context.fillRect(0, 0, pad.width, pad.height);
  context.drawImage(source, 0, 0, pad.width, pad.height);
  const photo = context.getImageData(0, 0, pad.width, pad.height);
  const {labels, milliseconds} = await segmenter.run(photo);
  const colours = new OffscreenCanvas(segmenter.width, segmenter.height);
  const picture = colourLabels(labels, segmenter.height, segmenter.width, segmenter.palette);
  colours.getContext('2d').putImageData(picture, 0, 0);
  shown = {photo, colours};
  element('error').hidden = element('hint').hidden = true;
  canvas.hidden = false;
  element('time').value = `${milliseconds.toFixed(0)} ms`;
  draw();
  list(labels);
}

async function open(file) {
  streaming = false;
  try {
    const bitmap = await createImageBitmap(file).catch(() => {
      throw new Error(`${file.name || 'this'} is no picture that the browser can read; give a JPEG or PNG`);
    });
    await show(bitmap, bitmap.width, bitmap.height);
    bitmap.close();
  } catch (error) {
    fail(error);
  }
}

async function toggleCamera() {
  if (streaming) {
    streaming = false;
    return;
  }
  try {
    video.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment'}});
    await video.play();
    streaming = true;
    element('camera').textContent = 'Stop';
    while (streaming) {
      await show(video, video.videoWidth, video.videoHeight);
      await new Promise(requestAnimationFrame);
    }
  } catch (error) {
    fail(new Error(`the camera cannot be used (${error.message}); allow it in the browser, or drop a photo`));
  } finally {
    video.srcObject?.getTracks().forEach((track) => track.stop());
    element('camera').textContent = 'Camera';
    streaming = false;
  }
}

function listen() {
  element('file').addEventListener('change', (event) => event.target.files[0] && open(event.target.files[0]));
  element('camera').addEventListener('click', toggleCamera);
  element('opacity').addEventListener('input', draw);
  document.addEventListener('paste', (event) => event.clipboardData.files[0] && open(event.clipboardData.files[0]));
  for (const name of ['dragover', 'dragleave', 'drop']) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      stage.classList.toggle('over', name === 'dragover');
      if (name === 'drop' && event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
    });
  }
}

try {
  navigator.serviceWorker?.register('offline.js').catch(() => {}); // without it the page works, but not offline
  segmenter = await Segmenter.load(document.baseURI);
  element('about').textContent = `${segmenter.name}, ${segmenter.classes.length} classes, input ${segmenter.width} x ${segmenter.height}`;
  listen();
  const photo = new URLSearchParams(location.search).get('image'); // ?image=photo.jpg opens a picture beside the page
  if (photo) {
    const response = await fetch(photo);
    if (!response.ok) throw new Error(`${photo}: ${response.status} ${response.statusText}`);
    await open(new File([await response.blob()], photo));
  }
  document.body.dataset.ready = 'true';
} catch (error) {
  element('about').textContent = 'The model could not be loaded.';
  fail(error);
}

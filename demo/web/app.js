// The page: segments a photo or camera frames and shows the overlay with its legend.

import {colorLabels, shares} from './pixels.js';
import {Segmenter} from './segmenter.js';

const LARGEST = 1600; // maximum long side of the displayed image, in pixels
const element = (id) => document.getElementById(id);
const canvas = element('picture'), video = element('video'), stage = element('stage');
let segmenter, shown, streaming = false;

function fail(error) {
  element('error').textContent = error.message ?? String(error);
  element('error').hidden = false;
}

/** Draws the image that was segmented last, with the class colors over it. */
function draw() {
  if (!shown) return;
  const context = canvas.getContext('2d');
  [canvas.width, canvas.height] = [shown.photo.width, shown.photo.height];
  context.putImageData(shown.photo, 0, 0);
  context.globalAlpha = element('opacity').value / 100;
  context.imageSmoothingEnabled = false;
  context.drawImage(shown.colors, 0, 0, canvas.width, canvas.height);
  context.globalAlpha = 1;
}

function list(labels) {
  element('legend').replaceChildren(...shares(labels, segmenter.classes.length).map(({id, share}) => {
    const item = document.createElement('li'), color = document.createElement('span');
    color.style.background = `rgb(${segmenter.palette[id].join(' ')})`;
    item.append(color, `${segmenter.classes[id]} ${(100 * share).toFixed(1)} %`);
    return item;
  }));
}

/** Segments an image, video frame or bitmap and displays the result. */
async function show(source, width, height) {
  const factor = Math.min(1, LARGEST / Math.max(width, height));
  const pad = new OffscreenCanvas(Math.max(1, Math.round(width * factor)), Math.max(1, Math.round(height * factor)));
  const context = pad.getContext('2d', {willReadFrequently: true});
  context.fillStyle = '#fff'; // background of transparent pixels
  context.fillRect(0, 0, pad.width, pad.height);
  context.drawImage(source, 0, 0, pad.width, pad.height);
  const photo = context.getImageData(0, 0, pad.width, pad.height);
  const {labels, height: rows, width: columns, milliseconds} = await segmenter.run(photo);
  const colors = new OffscreenCanvas(columns, rows);
  const picture = colorLabels(labels, rows, columns, segmenter.palette);
  colors.getContext('2d').putImageData(picture, 0, 0);
  shown = {photo, colors};
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
      throw new Error(`The browser cannot read ${file.name || 'this file'} as an image. Use a JPEG or PNG file.`);
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
    fail(new Error(`The camera is not available (${error.message}). Allow camera access in the browser, or drop a photo.`));
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
  navigator.serviceWorker?.register('offline.js').catch(() => {}); // the page works without it, but not offline
  segmenter = await Segmenter.load(document.baseURI);
  element('about').textContent = `${segmenter.name}, ${segmenter.classes.length} classes, input ${segmenter.width} x ${segmenter.height}`;
  listen();
  const photo = new URLSearchParams(location.search).get('image'); // ?image=photo.jpg opens an image in the page's folder
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

// The page's own code on one photo, under the page's own policy; the labels go back to the server of the test.

import {Segmenter} from './segmenter.js';

const broken = [];
document.addEventListener('securitypolicyviolation', (event) => broken.push(`${event.violatedDirective} ${event.blockedURI}`));
try {
  const segmenter = await Segmenter.load(document.baseURI);
  const photo = await (await fetch('photo.png')).blob();
  const bitmap = await createImageBitmap(photo, {colorSpaceConversion: 'none'});
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d');
  context.drawImage(bitmap, 0, 0);
  const {labels} = await segmenter.run(context.getImageData(0, 0, bitmap.width, bitmap.height));
  if (broken.length) throw new Error(broken.join(', '));
  await fetch('labels', {method: 'POST', body: Uint8Array.from(labels)});
} catch (error) {
  await fetch('failure', {method: 'POST', body: String(error.stack)});
}

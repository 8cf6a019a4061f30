// MediaPipe's ImageSegmenter on one photo; the labels go back to the server of the test.

import {FilesetResolver, ImageSegmenter} from './tasks/vision_bundle.mjs';

try {
  const runtime = await FilesetResolver.forVisionTasks(new URL('tasks/wasm', document.baseURI).href);
  const segmenter = await ImageSegmenter.createFromOptions(runtime, {
    baseOptions: {modelAssetPath: new URL('model.tflite', document.baseURI).href, delegate: 'CPU'},
    outputCategoryMask: true, outputConfidenceMasks: false,
  });
  const photo = await (await fetch('photo.png')).blob();
  const bitmap = await createImageBitmap(photo, {colorSpaceConversion: 'none'});
  const {categoryMask} = segmenter.segment(bitmap);
  await fetch('labels', {method: 'POST', body: categoryMask.getAsUint8Array()});
} catch (error) {
  await fetch('failure', {method: 'POST', body: String(error.stack || error)});
}

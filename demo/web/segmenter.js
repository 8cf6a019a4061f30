// Runs a .tflite segmentation model in the browser: returns a label per pixel.

import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

import {resizeImage} from './pixels.js';

export class Segmenter {
  /**
   * @param {string} folder URL of the folder with model.tflite, model.json and litert/.
   */
  static async load(folder) {
    const response = await fetch(new URL('model.json', folder));
    if (!response.ok) throw new Error('model.json is missing. Build the page with scripts/build_web.py.');
    const about = await response.json();
    await loadLiteRt(new URL('litert/core/wasm/', folder).href);
    const model = await loadAndCompile(new URL('model.tflite', folder).href, {accelerator: 'wasm'});
    return new Segmenter(about, model);
  }

  constructor(about, model) {
    this.name = about.model.name || `${about.model.head} on ${about.model.backbone}`;
    this.classes = about.dataset.class_names;
    this.palette = about.dataset.palette;
    this.model = model;
    const [input] = model.getInputDetails();
    [, this.height, this.width] = input.shape;
    this.eightBit = input.dtype === 'uint8';
    this.output = model.getOutputDetails().findIndex((details) => details.shape.length === 3); // logits have four dimensions
    if (this.output < 0) throw new Error('model.tflite has no labels output. Export it with --output=labels.');
  }

  /**
   * @param {ImageData} image an image of any size.
   * @returns {Promise<{labels: Int32Array, milliseconds: number}>} labels [this.height, this.width], and the latency of the network alone.
   */
  async run(image) {
    let pixels = resizeImage(image, this.height, this.width);
    if (this.eightBit) pixels = Uint8Array.from(pixels, Math.round);
    const input = new Tensor(pixels, [1, this.height, this.width, 3]);
    const start = performance.now();
    const outputs = await this.model.run([input]);
    const labels = Int32Array.from(await outputs[this.output].data());
    const milliseconds = performance.now() - start;
    for (const tensor of [input, ...outputs]) tensor.delete();
    return {labels, milliseconds};
  }
}

// Runs a .tflite segmentation model in the browser: returns a label per pixel.

import {loadAndCompile, loadLiteRt, Tensor} from '@litertjs/core';

import {cropLabels, enlargeLabels, enlargeScores, letterbox, letterboxSize, resizeImage} from './pixels.js';

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
    const shapes = model.getOutputDetails().map((details) => [...details.shape]);
    const labels = shapes.findIndex((shape) => shape.length === 3), logits = shapes.findIndex((shape) => shape.length === 4);
    // With --output_at=head, the outputs have the size of the head's class scores. Enlarged scores have finer edges than enlarged labels.
    this.fromScores = about.output_at === 'head' && logits >= 0;
    this.output = this.fromScores ? logits : labels;
    if (this.output < 0) throw new Error('model.tflite has no labels output. Export it with --output=labels.');
    this.outputSize = shapes[this.output].slice(1, 3);
    this.alignCorners = Boolean(about.align_corners);
    this.padding = about.resize === 'letterbox' ? about.pad_value : null;
  }

  /** Labels of the input's size from the values of the output. */
  labels(values) {
    const size = [this.height, this.width];
    if (this.fromScores) return enlargeScores(values, this.outputSize, size, this.alignCorners);
    if (this.outputSize[0] === size[0] && this.outputSize[1] === size[1]) return Int32Array.from(values);
    return enlargeLabels(values, this.outputSize, size, this.alignCorners);
  }

  /**
   * @param {ImageData} image an image of any size.
   * @returns {Promise<{labels: Int32Array, height: number, width: number, milliseconds: number}>} labels [height, width],
   *     of this.height and this.width or, with --resize=letterbox, of the part that shows the image; and the latency of the network alone.
   */
  async run(image) {
    const size = [this.height, this.width], shown = this.padding ? letterboxSize([image.height, image.width], size) : size;
    let pixels = resizeImage(image, ...shown);
    if (this.padding) pixels = letterbox(pixels, shown, size, this.padding);
    if (this.eightBit) pixels = Uint8Array.from(pixels, Math.round);
    const input = new Tensor(pixels, [1, this.height, this.width, 3]);
    const start = performance.now();
    const outputs = await this.model.run([input]);
    const values = await outputs[this.output].data();
    const milliseconds = performance.now() - start;
    const labels = cropLabels(this.labels(values), size, shown);
    for (const tensor of [input, ...outputs]) tensor.delete();
    return {labels, height: shown[0], width: shown[1], milliseconds};
  }
}

// Image operations on plain arrays: the resize used in training, and colors for labels.

/**
 * Bilinear resize with half-pixel centers and without antialiasing, as in the training pipeline.
 * @param {ImageData} image 8-bit RGBA.
 * @param {number} height output height.
 * @param {number} width output width.
 * @returns {Float32Array} [height, width, 3] RGB in 0..255.
 */
export function resizeImage(image, height, width) {
  const rows = places(image.height, height);
  const columns = places(image.width, width);
  const out = new Float32Array(height * width * 3);
  const source = image.data;
  let at = 0;
  for (let y = 0; y < height; y++) {
    const top = rows.low[y] * image.width, bottom = rows.high[y] * image.width, down = rows.share[y];
    for (let x = 0; x < width; x++) {
      const left = columns.low[x], right = columns.high[x], across = columns.share[x];
      const a = 4 * (top + left), b = 4 * (top + right), c = 4 * (bottom + left), d = 4 * (bottom + right);
      for (let channel = 0; channel < 3; channel++) {
        const above = source[a + channel] + (source[b + channel] - source[a + channel]) * across;
        const below = source[c + channel] + (source[d + channel] - source[c + channel]) * across;
        out[at++] = above + (below - above) * down;
      }
    }
  }
  return out;
}

function places(length, size) {
  const low = new Int32Array(size), high = new Int32Array(size), share = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const place = Math.min(Math.max((i + 0.5) * length / size - 0.5, 0), length - 1);
    low[i] = Math.floor(place);
    high[i] = Math.min(low[i] + 1, length - 1);
    share[i] = place - low[i];
  }
  return {low, high, share};
}

/**
 * Converts labels to opaque colors.
 * @param {ArrayLike<number>} labels [height, width] class ids.
 * @param {number[][]} palette RGB color per class.
 */
export function colorLabels(labels, height, width, palette) {
  const picture = new ImageData(width, height);
  for (let i = 0; i < labels.length; i++) {
    const [red, green, blue] = palette[labels[i]] ?? [0, 0, 0];
    picture.data.set([red, green, blue, 255], 4 * i);
  }
  return picture;
}

/** The ids of all predicted classes with their share of the pixels, largest first. */
export function shares(labels, classes) {
  const counts = new Array(classes).fill(0);
  for (const label of labels) counts[label]++;
  return counts.map((count, id) => ({id, share: count / labels.length})).filter((entry) => entry.share > 0)
    .sort((a, b) => b.share - a.share);
}

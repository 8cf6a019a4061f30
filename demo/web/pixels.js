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

/** The largest [height, width] with the aspect ratio of `from` that fits into `to`. */
export function letterboxSize(from, to) {
  const factor = Math.min(to[0] / from[0], to[1] / from[1]);
  return [0, 1].map((axis) => Math.min(to[axis], Math.max(1, Math.floor(from[axis] * factor + 0.5))));
}

/** Fills an image [from[0], from[1], 3] with a color at the bottom and the right, up to the size `to`. */
export function letterbox(pixels, from, to, color) {
  const out = new Float32Array(to[0] * to[1] * 3);
  for (let i = 0; i < out.length; i++) out[i] = color[i % 3];
  for (let y = 0; y < from[0]; y++) out.set(pixels.subarray(3 * y * from[1], 3 * (y + 1) * from[1]), 3 * y * to[1]);
  return out;
}

/** The top left part of labels [from[0], from[1]] with the size `to`. */
export function cropLabels(labels, from, to) {
  const out = new Int32Array(to[0] * to[1]);
  for (let y = 0; y < to[0]; y++) out.set(labels.subarray(y * from[1], y * from[1] + to[1]), y * to[1]);
  return out;
}

/** Where each of `size` samples lies among `length` samples, with half-pixel centers or aligned corners. */
function places(length, size, alignCorners = false) {
  const low = new Int32Array(size), high = new Int32Array(size), share = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const place = alignCorners ? i * (length - 1) / Math.max(size - 1, 1)
      : Math.min(Math.max((i + 0.5) * length / size - 0.5, 0), length - 1);
    low[i] = Math.floor(place);
    high[i] = Math.min(low[i] + 1, length - 1);
    share[i] = place - low[i];
  }
  return {low, high, share};
}

/**
 * The class with the largest score per pixel, after a bilinear resize of the scores.
 * @param {ArrayLike<number>} scores [height, width, classes], row by row.
 * @param {number[]} from [height, width] of the scores.
 * @param {number[]} to [height, width] of the result.
 * @param {boolean} alignCorners whether the network's own last resize aligns corners.
 * @returns {Int32Array} labels [to[0], to[1]].
 */
export function enlargeScores(scores, from, to, alignCorners = false) {
  const classes = scores.length / (from[0] * from[1]), length = from[1] * classes;
  const rows = places(from[0], to[0], alignCorners), columns = places(from[1], to[1], alignCorners);
  const labels = new Int32Array(to[0] * to[1]), row = new Float32Array(length);
  for (let y = 0; y < to[0]; y++) {
    const top = rows.low[y] * length, bottom = rows.high[y] * length, down = rows.share[y];
    for (let i = 0; i < length; i++) row[i] = scores[top + i] + (scores[bottom + i] - scores[top + i]) * down;
    for (let x = 0; x < to[1]; x++) {
      const left = columns.low[x] * classes, right = columns.high[x] * classes, across = columns.share[x];
      let best = -Infinity, label = 0;
      for (let c = 0; c < classes; c++) {
        const score = row[left + c] + (row[right + c] - row[left + c]) * across;
        if (score > best) [best, label] = [score, c];
      }
      labels[y * to[1] + x] = label;
    }
  }
  return labels;
}

/** Resizes labels by nearest neighbor, on the same grid as `enlargeScores`. */
export function enlargeLabels(labels, from, to, alignCorners = false) {
  const [rows, columns] = [0, 1].map((axis) => places(from[axis], to[axis], alignCorners));
  const nearest = ({low, high, share}, i) => share[i] >= 0.5 ? high[i] : low[i];
  const out = new Int32Array(to[0] * to[1]);
  for (let y = 0, at = 0; y < to[0]; y++) {
    const start = nearest(rows, y) * from[1];
    for (let x = 0; x < to[1]; x++) out[at++] = labels[start + nearest(columns, x)];
  }
  return out;
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

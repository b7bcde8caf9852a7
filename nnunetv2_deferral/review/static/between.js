/**
 * Shapes between two slices, by interpolation of signed distances (Raya and Udupa 1990): positive inside of a shape,
 * negative outside, in mm.
 */

/**
 * Labels of the slices between two others.
 *
 * @param {Uint8Array} first    labels of a slice, row by row
 * @param {Uint8Array} last     labels of another one
 * @param {number} count        number of slices between them
 * @param {number} width        columns
 * @param {number[]} spacing    [columns, rows], mm
 * @returns {Uint8Array[]}      their labels, from the first slice to the last; background where no shape is
 */
export function labelsBetween(first, last, count, width, spacing) {
  const wide = between(withMargin(first, width), withMargin(last, width), count, width + 2, spacing);
  return wide.map((slice) => withoutMargin(slice, width + 2));
}

function between(first, last, count, width, spacing) {
  const labels = [...new Set([...first, ...last])].filter((label) => label > 0);
  const shapes = labels.map((label) => {
    const [one, other] = [first, last].map((slice) => signedDistances(slice, label, width, spacing));
    return { label, first: one ?? vanished(other), last: other ?? vanished(one) };
  });
  return Array.from({ length: count }, (_, step) => {
    const share = (step + 1) / (count + 1);
    const found = new Uint8Array(first.length);
    const highest = new Float64Array(first.length);
    for (const shape of shapes) {
      for (let i = 0; i < found.length; i++) {
        const distance = (1 - share) * shape.first[i] + share * shape.last[i];
        if (distance > highest[i]) [highest[i], found[i]] = [distance, shape.label];
      }
    }
    return found;
  });
}

/** For a shape that is not in a slice, distances with which it shrinks evenly to nothing on the way there. */
function vanished(other) {
  const most = other.reduce((highest, distance) => Math.max(highest, distance), 0);
  return other.map((distance) => distance - most);
}

/** Distances to the border of a label, mm; null if the label is nowhere. */
function signedDistances(slice, label, width, spacing) {
  if (!slice.includes(label)) return null;
  const inside = squaredDistances((i) => slice[i] !== label, slice.length, width, spacing);
  const outside = squaredDistances((i) => slice[i] === label, slice.length, width, spacing);
  return inside.map((squared, i) => Math.sqrt(squared) - Math.sqrt(outside[i]));
}

/**
 * Squared distances to the nearest source (Felzenszwalb and Huttenlocher 2012); large where there is none.
 *
 * @param {(i: number) => boolean} isSource
 * @param {number} size         number of pixels
 * @param {number} width        columns
 * @param {number[]} spacing    [columns, rows], mm
 */
function squaredDistances(isSource, size, width, [spacingU, spacingV]) {
  const height = size / width;
  const farthest = (width * spacingU) ** 2 + (height * spacingV) ** 2;
  const distances = Float64Array.from({ length: size }, (_, i) => (isSource(i) ? 0 : farthest));
  for (let v = 0; v < height; v++) alongLine(distances, v * width, 1, width, spacingU);
  for (let u = 0; u < width; u++) alongLine(distances, u, width, height, spacingV);
  return distances;
}

/** A slice with a margin of background, so that a shape that fills it has a border. */
function withMargin(slice, width) {
  const height = slice.length / width;
  const wide = new Uint8Array((width + 2) * (height + 2));
  for (let v = 0; v < height; v++) wide.set(slice.subarray(v * width, (v + 1) * width), (v + 1) * (width + 2) + 1);
  return wide;
}

function withoutMargin(wide, width) {
  const height = wide.length / width;
  return wide.filter((_, i) => i % width > 0 && i % width < width - 1 && i >= width && i < (height - 1) * width);
}

/** The lower envelope of the parabolas over a line. */
function alongLine(values, start, stride, length, spacing) {
  const heights = Float64Array.from({ length }, (_, i) => values[start + i * stride]);
  const tips = new Int32Array(length);
  const from = new Float64Array(length + 1).fill(-Infinity);
  let last = 0;
  const crossing = (a, b) =>
    (heights[b] - heights[a] + spacing ** 2 * (b * b - a * a)) / (2 * spacing ** 2 * (b - a));
  for (let i = 1; i < length; i++) {
    let at = crossing(tips[last], i);
    while (at <= from[last]) at = crossing(tips[--last], i);
    tips[++last] = i;
    from[last] = at;
  }
  for (let i = 0, place = 0; i < length; i++) {
    while (place < last && from[place + 1] < i) place++;
    values[start + i * stride] = spacing ** 2 * (i - tips[place]) ** 2 + heights[tips[place]];
  }
}

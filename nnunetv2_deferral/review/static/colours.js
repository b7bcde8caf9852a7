/** Colours and grey-level windows. */

/** Labels 1, 2, ... as [r, g, b]. */
const LABELS = [
  [64, 196, 255],
  [255, 110, 180],
  [190, 242, 100],
  [255, 170, 80],
  [167, 139, 250],
  [94, 234, 212],
  [248, 113, 113],
  [250, 220, 90],
];
/** Experts 1, 2, ... */
const EXPERTS = [
  [255, 179, 71],
  [186, 140, 255],
  [150, 220, 120],
  [255, 135, 165],
  [240, 230, 120],
];

export const OPEN_REGION = "#ffb347";
export const DONE_REGION = "#5fbf8a";
export const CURRENT_REGION = "#ffffff";
export const REFERENCE = "#f4f1de";
/** The two readings that an adjudicator compares. */
export const READINGS = ["#ffe14d", "#d29bff"];

/** The colour of a label as [r, g, b]. */
export const labelColour = (label) => LABELS[(label - 1) % LABELS.length];

/** The colour of an expert, counted from 1, as [r, g, b]. */
export const expertColour = (number) => EXPERTS[(number - 1) % EXPERTS.length];

/** A colour halfway to white, for the model's mask beside the expert's. */
export const pale = (colour) => colour.map((part) => Math.round((part + 255) / 2));

/** [r, g, b] as CSS. */
export const css = ([r, g, b], alpha = 1) => `rgba(${r}, ${g}, ${b}, ${alpha})`;

/**
 * The window between two percentiles of an image.
 *
 * @param {ArrayLike<number>} values
 * @param {number} low   per cent
 * @param {number} high  per cent
 * @returns {{centre: number, width: number}}
 */
export function percentileWindow(values, low, high) {
  const step = Math.max(1, Math.floor(values.length / 100000));
  const sample = [];
  for (let i = 0; i < values.length; i += step) if (Number.isFinite(values[i])) sample.push(values[i]);
  sample.sort((a, b) => a - b);
  const from = sample[Math.floor((low / 100) * (sample.length - 1))] ?? 0;
  const to = sample[Math.ceil((high / 100) * (sample.length - 1))] ?? 1;
  return { centre: (from + to) / 2, width: Math.max(to - from, 1e-6) };
}

/**
 * Convert grey values to RGBA.
 *
 * @param {ArrayLike<number>[]} channels  one channel, or red, green and blue
 * @param {{centre: number, width: number}} window
 * @param {Uint8ClampedArray} rgba
 */
export function applyWindow(channels, { centre, width }, rgba) {
  const scale = 255 / width;
  const low = centre - width / 2;
  const [red, green, blue] = channels.length === 3 ? channels : [channels[0], channels[0], channels[0]];
  for (let i = 0, at = 0; i < red.length; i++, at += 4) {
    rgba[at] = (red[i] - low) * scale;
    rgba[at + 1] = (green[i] - low) * scale;
    rgba[at + 2] = (blue[i] - low) * scale;
    rgba[at + 3] = 255;
  }
}

/**
 * The state shared by all views of a case: image, window and position.
 *
 * @typedef {object} Layer
 * @property {Uint8Array|Uint16Array} data
 * @property {(value: number) => number[]|null} [fill]    [r, g, b, alpha 0..255] for a value; null for no fill
 * @property {(value: number) => object|null} [outline]   {colour, width, dash} for a value; null for no outline
 * @property {boolean} visible
 */

import { applyWindow, defaultWindow } from "./colours.js";
import { planesOf } from "./planes.js";

export class Scene {
  /**
   * @param {object} details    the details of the case from the server
   * @param {(Uint8Array|Int16Array|Float32Array)[]} channels
   */
  constructor(details, channels) {
    this.shape = details.shape;
    this.spacing = details.spacing;
    this.named = details.named;
    this.colour = details.colour;
    this.planes = planesOf(details.shape, details.spacing);
    this.isFlat = details.shape[0] === 1;
    this.channels = channels;
    this.channelNames = details.channels;
    this.channel = 0;
    this.windows = channels.map(defaultWindow);
    /** [z, y, x] of the voxel at which all planes intersect. */
    this.position = details.shape.map((size) => Math.floor(size / 2));
    this.views = [];
    /** Called when the window or the position changes. */
    this.onChange = null;
  }

  get window() {
    return this.windows[this.channel];
  }

  /** The displayed channels: one, or red, green and blue. */
  get drawn() {
    return this.colour ? this.channels : [this.channels[this.channel]];
  }

  setWindow(centre, width) {
    this.windows[this.channel] = { centre, width: Math.max(width, this.smallestWindow) };
    this.redraw();
  }

  resetWindow() {
    this.windows[this.channel] = defaultWindow(this.channels[this.channel]);
    this.redraw();
  }

  get smallestWindow() {
    return this.channels[this.channel] instanceof Float32Array ? 1e-6 : 1;
  }

  moveTo(position) {
    this.position = position.map((at, axis) => Math.min(this.shape[axis] - 1, Math.max(0, Math.round(at))));
    this.redraw();
  }

  /** The value of the image at a voxel, as text. */
  valueAt(voxel) {
    return this.drawn.map((channel) => +channel[voxel].toPrecision(5)).join(", ");
  }

  /** Convert a slice of the image to RGBA. */
  paintImage(slices, rgba) {
    applyWindow(slices, this.window, rgba);
  }

  redraw() {
    this.onChange?.();
    for (const view of this.views) view.request();
  }
}

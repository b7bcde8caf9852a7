/**
 * The state shared by all views of a case: image, window and position.
 *
 * @typedef {object} Layer
 * @property {Uint8Array|Uint16Array} data
 * @property {(value: number) => number[]|null} [fill]    [r, g, b, alpha 0..255] for a value; null for no fill
 * @property {(value: number) => object|null} [outline]   {colour, width, dash} for a value; null for no outline
 * @property {boolean} visible
 */

import { applyWindow, percentileWindow } from "./colours.js";
import { keep, kept } from "./kept.js";
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
    this.offered = details.windows;
    this._percentiles = new Map();
    this.windows = details.windows.map((_, channel) => {
      this.channel = channel;
      return this._keptWindow();
    });
    this.channel = 0;
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

  /** The windows offered for the channel; the first is the one that an image is opened with. */
  get presets() {
    return this.offered[this.channel];
  }

  /** Set the window by hand. On the next images it stays the same in Hounsfield units, else relative to the first. */
  setWindow(centre, width) {
    this._become({ name: null, centre, width: Math.max(width, this.smallestWindow) });
    keep(this._key, { centre: (centre - this._base.centre) / this._base.width, width: width / this._base.width });
  }

  /** Choose one of the windows that are offered. */
  choosePreset(place) {
    const preset = this.presets[place];
    if (!preset) return;
    this._become(this._resolved(preset));
    keep(this._key, { name: preset.name });
  }

  _become(window) {
    this.windows[this.channel] = window;
    this.redraw();
  }

  /** The window of a channel that was chosen last, in this or an earlier case. */
  _keptWindow() {
    const chosen = kept(this._key, {});
    const preset = this.presets.find(({ name }) => name === chosen.name) ?? this.presets[0];
    if (!chosen.width) return this._resolved(preset);
    const { centre, width } = this._base;
    return { name: null, centre: centre + chosen.centre * width, width: chosen.width * width };
  }

  /** What a window set by hand is kept relative to: a fixed window if there is one, else that of the image. */
  get _base() {
    return this._resolved(this.presets.find((preset) => preset.width) ?? this.presets[0]);
  }

  get _key() {
    return `window ${this.channelNames[this.channel]}`;
  }

  _resolved({ name, centre, width, low, high }) {
    if (width) return { name, centre, width };
    const values = this.channels[this.channel];
    const known = `${this.channel} ${name}`;
    if (!this._percentiles.has(known)) this._percentiles.set(known, percentileWindow(values, low, high));
    return { name, ...this._percentiles.get(known) };
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

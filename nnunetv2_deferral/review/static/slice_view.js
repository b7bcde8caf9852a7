/**
 * A view of one plane of a scene on a canvas: image, layers, position and navigation.
 *
 * The image and the filled layers of the current slice are cached as pictures with one pixel per voxel, which drawing
 * scales to the true spacing. When a stroke changes a few voxels, only their rectangle of the picture is recomputed.
 */

import { columnRow, extractSlice, indexOf, voxelAt } from "./planes.js";
import { drawFlags } from "./flags.js";
import { outlinesOf } from "./outline.js";
import { SliceInput } from "./slice_input.js";
import { drawLabels } from "./slice_labels.js";

const BLOCKED_MS = 450;
const MARGIN = 10;
const MAX_ZOOM = 40;
/** Minimum field of view around a region, in voxels. */
const CONTEXT_VOXELS = 56;

export class SliceView {
  /**
   * @param {import("./scene.js").Scene} scene
   * @param {string} planeName
   * @param {import("./scene.js").Layer[]} layers  from bottom to top
   * @param {object} [options]
   * @param {object} [options.tool]     has methods `down`, `move` and `up` for points of the slice, optionally `draw`
   * @param {{at: number[]}[]} [options.flags]  marked places
   * @param {string} [options.title]    shown above the name of the plane
   * @param {() => void} [options.onMove]  called when the pointer, position or window changes
   */
  constructor(scene, planeName, layers, { tool = null, flags = [], title = "", onMove = () => {} } = {}) {
    Object.assign(this, { scene, layers, tool, flags, title, onMove });
    this.plane = scene.planes[planeName];
    this.canvas = document.createElement("canvas");
    this.canvas.className = "slice";
    this.canvas.tabIndex = -1;
    this.zoom = 1;
    this.pan = [0, 0];
    this.pointer = null;
    this.blocked = null;
    /** Views with the same zoom and pan. */
    this.linked = [];
    this._image = { key: "" };
    this._fills = { key: "" };
    this._outlines = new Map();
    this._versions = new Map();
    this._requested = false;
    new SliceInput(this);
    this._observer = new ResizeObserver(() => this.request());
    this._observer.observe(this.canvas);
    scene.views.push(this);
  }

  /** Remove the view from its scene. */
  remove() {
    this._observer.disconnect();
    this.scene.views = this.scene.views.filter((view) => view !== this);
    this.canvas.remove();
  }

  get slice() {
    return this.scene.position[this.plane.axis];
  }

  setPlane(name) {
    this.plane = this.scene.planes[name];
    this.resetView();
  }

  resetView() {
    this.zoom = 1;
    this.pan = [0, 0];
    this.request();
  }

  /** Zoom to a box of voxels with some context, and centre it. */
  frame([low, high]) {
    const { plane, canvas } = this;
    const { spacingU, spacingV, width, height } = plane;
    const corners = [columnRow(plane, low), columnRow(plane, high)];
    const sizes = [
      (Math.abs(corners[0][0] - corners[1][0]) + 1) * spacingU,
      (Math.abs(corners[0][1] - corners[1][1]) + 1) * spacingV,
    ];
    const field = Math.max(...sizes.map((size) => 2.2 * size), CONTEXT_VOXELS * Math.min(spacingU, spacingV));
    const room = Math.min(canvas.clientWidth, canvas.clientHeight);
    const whole = Math.min(canvas.clientWidth / (width * spacingU), canvas.clientHeight / (height * spacingV));
    this.zoom = Math.min(MAX_ZOOM, Math.max(1, room / field / whole));
    this.pan = [
      (width / 2 - (corners[0][0] + corners[1][0] + 1) / 2) * spacingU,
      (height / 2 - (corners[0][1] + corners[1][1] + 1) / 2) * spacingV,
    ];
    this.request();
  }

  /** Note that the data of a layer has changed, in this slice only inside the rectangle if one is given. */
  changed(layer, rect = null) {
    this._versions.set(layer, (this._versions.get(layer) ?? 0) + 1);
    if (!rect) this._fills.key = "";
    else if (this._fills.key === this._fillKey()) this._fillRect(rect);
    this.request();
  }

  /** Briefly highlight voxels that could not be painted. */
  showBlocked(voxels) {
    const points = voxels.map((voxel) => this._columnRow(voxel));
    this.blocked = { points, until: performance.now() + BLOCKED_MS };
    this.request();
    setTimeout(() => this.request(), BLOCKED_MS + 20);
  }

  /** Adopt zoom and pan of another view. */
  follow({ zoom, pan }) {
    if (zoom === this.zoom && pan[0] === this.pan[0] && pan[1] === this.pan[1]) return;
    this.zoom = zoom;
    this.pan = [...pan];
    this.request();
  }

  /** Draw in the next frame. */
  request() {
    for (const view of this.linked) view.follow(this);
    if (this._requested) return;
    this._requested = true;
    requestAnimationFrame(() => {
      this._requested = false;
      if (this.canvas.isConnected) this._draw();
    });
  }

  /** Column and row at a point of the canvas in CSS pixels. */
  toSlice(x, y) {
    const { scale, left, top } = this._frame();
    return [(x - left) / (scale * this.plane.spacingU) - 0.5, (y - top) / (scale * this.plane.spacingV) - 0.5];
  }

  /** CSS pixels per millimetre. */
  get pixelsPerMm() {
    return this._frame().scale;
  }

  /** The value of the image under the pointer as text; null outside the image. */
  valueUnderPointer() {
    if (!this.pointer) return null;
    const [u, v] = this.toSlice(...this.pointer).map(Math.round);
    if (u < 0 || v < 0 || u >= this.plane.width || v >= this.plane.height) return null;
    return this.scene.valueAt(indexOf(this.plane, u, v, this.slice));
  }

  /** Move all planes to the pointer. */
  moveToPointer() {
    const [u, v] = this.toSlice(...this.pointer);
    this.scene.moveTo(voxelAt(this.plane, u, v, this.slice));
    this.onMove();
  }

  /** The current picture as PNG. */
  toBlob() {
    return new Promise((resolve) => this.canvas.toBlob(resolve, "image/png"));
  }

  _columnRow(voxel) {
    const [, ny, nx] = this.scene.shape;
    return columnRow(this.plane, [Math.floor(voxel / (nx * ny)), Math.floor(voxel / nx) % ny, voxel % nx]);
  }

  _frame() {
    const { plane, canvas } = this;
    const [width, height] = [plane.width * plane.spacingU, plane.height * plane.spacingV];
    const room = [canvas.clientWidth - 2 * MARGIN, canvas.clientHeight - 2 * MARGIN];
    const scale = Math.max(1e-6, this.zoom * Math.min(room[0] / width, room[1] / height));
    return {
      scale,
      left: canvas.clientWidth / 2 + (this.pan[0] - width / 2) * scale,
      top: canvas.clientHeight / 2 + (this.pan[1] - height / 2) * scale,
    };
  }

  _draw() {
    const { canvas, plane, scene } = this;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    const { scale, left, top } = this._frame();
    const size = [plane.width * plane.spacingU * scale, plane.height * plane.spacingV * scale];
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(this._imagePicture(), left, top, ...size);
    context.imageSmoothingEnabled = false;
    context.drawImage(this._fillPicture(), left, top, ...size);
    const place = { left, top, stepU: scale * plane.spacingU, stepV: scale * plane.spacingV };
    for (const layer of this.layers) if (layer.visible && layer.outline) this._drawOutline(context, layer, place);
    this._drawBlocked(context, place);
    drawFlags(this, context, place, this.flags);
    this.tool?.draw?.(this, context, place);
    if (!scene.isFlat) this._drawPosition(context, place);
    drawLabels(context, this);
  }

  _imagePicture() {
    const { scene, plane, slice } = this;
    const key = [plane.name, slice, scene.channel, scene.window.centre, scene.window.width].join();
    if (this._image.key !== key) {
      const slices = scene.drawn.map((channel) => extractSlice(channel, plane, slice));
      this._image = blankPicture(key, plane);
      scene.paintImage(slices, this._image.data.data);
      this._image.context.putImageData(this._image.data, 0, 0);
    }
    return this._image.canvas;
  }

  _fillKey() {
    return [this.plane.name, this.slice, ...this.layers.map((layer) => (layer.visible ? 1 : 0))].join();
  }

  _fillPicture() {
    const key = this._fillKey();
    if (this._fills.key !== key) {
      this._fills = blankPicture(key, this.plane);
      this._fillRect([0, 0, this.plane.width - 1, this.plane.height - 1]);
    }
    return this._fills.canvas;
  }

  _fillRect([u0, v0, u1, v1]) {
    const { plane, slice } = this;
    const rgba = this._fills.data.data;
    const filled = this.layers.filter((layer) => layer.visible && layer.fill);
    for (let v = v0; v <= v1; v++) {
      for (let u = u0; u <= u1; u++) {
        const at = 4 * (v * plane.width + u);
        rgba[at + 3] = 0;
        const voxel = indexOf(plane, u, v, slice);
        for (const layer of filled) {
          const value = layer.data[voxel];
          const colour = value === 0 ? null : layer.fill(value);
          if (colour) rgba.set(colour, at);
        }
      }
    }
    this._fills.context.putImageData(this._fills.data, 0, 0, u0, v0, u1 - u0 + 1, v1 - v0 + 1);
  }

  _drawOutline(context, layer, { left, top, stepU, stepV }) {
    const { plane, slice } = this;
    const key = [plane.name, slice, this._versions.get(layer) ?? 0].join();
    let kept = this._outlines.get(layer);
    if (kept?.key !== key) {
      kept = { key, lines: outlinesOf(extractSlice(layer.data, plane, slice), plane.width, plane.height) };
      this._outlines.set(layer, kept);
    }
    for (const [value, lines] of kept.lines) {
      const style = layer.outline(value);
      if (!style) continue;
      context.beginPath();
      for (let i = 0; i < lines.length; i += 4) {
        context.moveTo(left + lines[i] * stepU, top + lines[i + 1] * stepV);
        context.lineTo(left + lines[i + 2] * stepU, top + lines[i + 3] * stepV);
      }
      context.lineCap = style.dash ? "butt" : "square";
      context.setLineDash(style.dash ?? []);
      if (style.halo) {
        context.strokeStyle = "rgba(0, 0, 0, 0.55)";
        context.lineWidth = style.width + 2;
        context.stroke();
      }
      context.strokeStyle = style.colour;
      context.lineWidth = style.width;
      context.stroke();
    }
    context.setLineDash([]);
  }

  _drawBlocked(context, { left, top, stepU, stepV }) {
    if (!this.blocked || performance.now() > this.blocked.until) {
      this.blocked = null;
      return;
    }
    context.fillStyle = "rgba(255, 70, 70, 0.55)";
    for (const [u, v] of this.blocked.points) context.fillRect(left + u * stepU, top + v * stepV, stepU, stepV);
  }

  _drawPosition(context, { left, top, stepU, stepV }) {
    const [u, v] = columnRow(this.plane, this.scene.position);
    const [x, y] = [left + (u + 0.5) * stepU, top + (v + 0.5) * stepV];
    context.strokeStyle = "rgba(255, 255, 255, 0.16)";
    context.lineWidth = 1;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [
      [0, y, x - 14, y],
      [x + 14, y, 1e5, y],
      [x, 0, x, y - 14],
      [x, y + 14, x, 1e5],
    ]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }

  /** Move by a number of slices. */
  step(by) {
    const position = [...this.scene.position];
    // Turning the wheel towards the user moves axial slices towards the feet.
    position[this.plane.axis] += this.plane.axis === 0 ? -by : by;
    this.scene.moveTo(position);
    this.onMove();
  }

  /** Zoom in or out by one step around a point. */
  zoomAt(x, y, direction) {
    const before = this._frame();
    const at = [(x - before.left) / before.scale, (y - before.top) / before.scale];
    this.zoom = Math.min(MAX_ZOOM, Math.max(0.5, this.zoom * 1.15 ** direction));
    const after = this._frame();
    this.pan[0] += (x - after.left) / after.scale - at[0];
    this.pan[1] += (y - after.top) / after.scale - at[1];
    this.request();
  }
}

function blankPicture(key, { width, height }) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  return { key, canvas, context, data: context.createImageData(width, height) };
}

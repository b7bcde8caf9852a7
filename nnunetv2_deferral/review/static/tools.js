/** The drawing tools, which translate pointer input on a view to the paint engine. */

import { indexOf, voxelAt } from "./planes.js";

export const TOOLS = [
  { name: "brush", key: "b", title: "Brush" },
  { name: "smart", key: "g", title: "Smart brush" },
  { name: "eraser", key: "e", title: "Eraser" },
  { name: "polygon", key: "p", title: "Polygon" },
  { name: "fill", key: "f", title: "Fill" },
  { name: "ruler", key: "d", title: "Ruler" },
  { name: "flag", key: "x", title: "Flag" },
];

/** Colours of what is being drawn and of the brush, unlike those of regions. */
const [DRAWN, BRUSH] = ["#ffe14d", "#7fd4ff"];
const CLOSE_PIXELS = 9;
const DRAG_PIXELS = 4;

export class Painter {
  /**
   * @param {object} options
   * @param {import("./paint.js").PaintSession} options.session
   * @param {import("./scene.js").Scene} options.scene
   * @param {number} options.label
   * @param {(view: object, touched: import("./paint.js").Touched) => void} options.onTouched  called after each step
   * @param {() => void} options.onStroke  called after a stroke that changed voxels
   * @param {(voxel: number[]) => void} options.onFlag  called when a place [z, y, x] is flagged
   */
  constructor({ session, scene, label, onTouched, onStroke, onFlag }) {
    Object.assign(this, { session, scene, label, onTouched, onStroke, onFlag });
    this.kind = "brush";
    this.locked = false;
    /** Tolerance of the smart brush for grey values, as a fraction of the width of the window. */
    this.tolerance = 0.12;
    this.unit = Math.min(...scene.spacing.slice(scene.isFlat ? 1 : 0));
    this.steps = 4;
    /** Whether brushes are balls, which reach into the slices around. */
    this.isBall = false;
    this._ruler = null;
    this._last = null;
    this._accepts = undefined;
    this._corners = null;
  }

  /** Diameter of the brush, mm. */
  get diameter() {
    return this.steps * this.unit;
  }

  /** Change the size, in steps that increase with it. */
  resize(direction) {
    const by = this.steps >= 20 ? 4 : this.steps >= 8 ? 2 : 1;
    this.steps = Math.min(200, Math.max(1, this.steps + direction * by));
  }

  choose(kind) {
    this.kind = kind;
    this._ruler = null;
    this._corners = null;
  }

  /** Whether a stroke of a brush goes on. */
  get isDrawing() {
    return this._last !== null;
  }

  /** Whether a polygon is being drawn. */
  get isOpen() {
    return this._corners !== null;
  }

  /** Discard the polygon that is being drawn. */
  cancel() {
    this._corners = null;
  }

  /** Fill the polygon that is being drawn. */
  close() {
    if (!this._corners) return;
    const { view, slice, points } = this._corners;
    this._corners = null;
    this._stroke(view, () => this.onTouched(view, this.session.polygon(view.plane, slice, points, this.label)));
  }

  down(view, point) {
    if (this.locked) return;
    if (this.kind === "ruler") {
      this._ruler = { view, slice: view.slice, points: [point, point], measures: true };
    } else if (this.kind === "flag") {
      const [u, v] = point.map(Math.round);
      if (this._isInside(view, u, v)) this.onFlag(voxelAt(view.plane, u, v, view.slice));
    } else if (this.kind === "polygon") {
      this._addCorner(view, point);
    } else if (this.kind === "fill") {
      this._stroke(view, () => this.onTouched(view, this.session.fill(view.plane, view.slice, point, this.label)));
    } else {
      this._accepts = this.kind === "smart" ? this._similarTo(view, point) : undefined;
      this.session.begin(view.plane);
      this._last = point;
      this._paint(view, point);
    }
  }

  move(view, point) {
    if (this.locked) return;
    if (this._last) this._paint(view, point);
    if (this._ruler?.measures) this._ruler.points[1] = point;
    const open = this._corners;
    if (this.kind === "polygon" && open && this._pixels(view, open.points.at(-1), point) > DRAG_PIXELS) {
      open.points.push(point);
      open.dragged = true;
    }
  }

  up() {
    if (this._ruler) this._ruler.measures = false;
    if (this._last) {
      this._last = null;
      if (this.session.commit()) this.onStroke();
    }
    // A freehand outline is closed when the pointer is released; single clicks set corners.
    if (this._corners?.dragged && this._corners.points.length > 3) this.close();
  }

  /** Draw the tool over the image. */
  draw(view, context, { left, top, stepU, stepV }) {
    const place = ([u, v]) => [left + (u + 0.5) * stepU, top + (v + 0.5) * stepV];
    if (this._corners && this._corners.view === view && this._corners.slice === view.slice) {
      context.beginPath();
      for (const point of this._corners.points) context.lineTo(...place(point));
      if (view.pointer) context.lineTo(...view.pointer);
      context.setLineDash([6, 3]);
      context.strokeStyle = DRAWN;
      context.lineWidth = 1.5;
      context.stroke();
      context.setLineDash([]);
      context.strokeRect(...place(this._corners.points[0]).map((at) => at - 4), 8, 8);
    }
    if (this._ruler?.view === view && this._ruler.slice === view.slice) this._drawRuler(view, context, place);
    if (!view.pointer || this.locked) return;
    const own = ["flag", "ruler"].includes(this.kind) || this._isOwn(view, view.toSlice(...view.pointer));
    view.canvas.classList.toggle("blocked", !own);
    if (!["brush", "smart", "eraser"].includes(this.kind)) return;
    context.beginPath();
    context.arc(...view.pointer, Math.max(2, (this.diameter / 2) * view.pixelsPerMm), 0, 2 * Math.PI);
    context.setLineDash(this.kind === "eraser" ? [4, 3] : []);
    context.strokeStyle = own ? BRUSH : "#ff5555";
    context.lineWidth = own ? 1.25 : 2;
    context.stroke();
    context.setLineDash([]);
  }

  _paint(view, point) {
    const label = this.kind === "eraser" ? 0 : this.label;
    const { plane, slice } = view;
    const stroke = [plane, slice, this._last, point, this.diameter / 2, label, this._accepts];
    this._last = point;
    this.onTouched(view, this.isBall ? this.session.ball(...stroke) : this.session.brush(...stroke));
  }

  _drawRuler({ plane, scene }, context, place) {
    const [from, to] = this._ruler.points;
    const length = Math.hypot((to[0] - from[0]) * plane.spacingU, (to[1] - from[1]) * plane.spacingV);
    context.beginPath();
    for (const point of [from, to]) context.lineTo(...place(point));
    context.strokeStyle = context.fillStyle = DRAWN;
    context.lineWidth = 1.5;
    context.stroke();
    const [x, y] = place(to);
    context.textAlign = "left";
    context.font = "600 13px system-ui, sans-serif";
    context.fillText(`${length.toFixed(1)} ${scene.named ? "mm" : "px"}`, x + 10, y - 8);
  }

  _stroke({ plane }, work) {
    this.session.begin(plane);
    work();
    if (this.session.commit()) this.onStroke();
  }

  _addCorner(view, point) {
    const open = this._corners;
    if (!open || open.view !== view || open.slice !== view.slice) {
      this._corners = { view, slice: view.slice, points: [point], dragged: false };
    } else if (open.points.length > 2 && this._pixels(view, open.points[0], point) < CLOSE_PIXELS) {
      this.close();
    } else {
      open.points.push(point);
    }
  }

  _pixels(view, [ua, va], [ub, vb]) {
    const { spacingU, spacingV } = view.plane;
    return Math.hypot((ua - ub) * spacingU, (va - vb) * spacingV) * view.pixelsPerMm;
  }

  _isOwn(view, [u, v]) {
    const [column, row] = [Math.round(u), Math.round(v)];
    if (!this._isInside(view, column, row)) return false;
    return this.session.regions[indexOf(view.plane, column, row, view.slice)] !== 0;
  }

  _isInside({ plane }, column, row) {
    return column >= 0 && row >= 0 && column < plane.width && row < plane.height;
  }

  _similarTo(view, [u, v]) {
    const { plane } = view;
    const column = Math.min(plane.width - 1, Math.max(0, Math.round(u)));
    const row = Math.min(plane.height - 1, Math.max(0, Math.round(v)));
    const seed = indexOf(plane, column, row, view.slice);
    const channels = this.scene.drawn;
    const values = channels.map((channel) => channel[seed]);
    const reach = this.tolerance * this.scene.window.width;
    return (voxel) => channels.every((channel, i) => Math.abs(channel[voxel] - values[i]) <= reach);
  }
}

/**
 * The paint engine: strokes, undo and redo, and unsaved changes.
 *
 * Only voxels of the expert's regions can change. The cost of a stroke depends on its bounding rectangle and not on the
 * size of the volume: it writes to the array of labels in place and records the changed voxels.
 */

import { labelsBetween } from "./between.js";
import { columnRow, indexOf, sliceOf } from "./planes.js";

const UNDO_STEPS = 200;
const AROUND = 10; // voxels

/**
 * @typedef {object} Touched       result of a step of a stroke
 * @property {number} changed      number of changed voxels
 * @property {number} own          number of voxels under the brush inside the expert's regions
 * @property {number[]} blocked    voxels under the brush outside the expert's regions, as indices in the flat array
 * @property {number[]|null} rect  [u0, v0, u1, v1] (inclusive) to be redrawn, or null
 */

export class PaintSession {
  /**
   * @param {object} options
   * @param {Uint8Array} options.labels    the expert's mask, changed in place
   * @param {Uint8Array} options.model     the model's mask
   * @param {Uint16Array} options.regions  the number of the region, 0 where the expert is not asked
   */
  constructor({ labels, model, regions }) {
    this.labels = labels;
    this.model = model;
    this.regions = regions;
    this.saved = labels.slice();
    /** Counter of changes. */
    this.version = 0;
    this._undo = [];
    this._redo = [];
    this._stroke = null;
    this._unsaved = [];
  }

  /**
   * Begin a stroke; all changes until `commit` are undone together.
   *
   * @param {import("./planes.js").Plane|null} [plane]  the plane that is drawn in by hand
   */
  begin(plane = null) {
    this._stroke = { voxels: [], before: [], after: [], axis: plane?.axis ?? null };
  }

  /** End a stroke. @returns {boolean} whether it changed anything */
  commit() {
    const stroke = this._stroke;
    this._stroke = null;
    if (!stroke || stroke.voxels.length === 0) return false;
    this._undo.push(stroke);
    if (this._undo.length > UNDO_STEPS) this._undo.shift();
    this._redo = [];
    this._unsaved.push(stroke.voxels);
    return true;
  }

  /**
   * Draw with a round brush from one point to another.
   *
   * @param {import("./planes.js").Plane} plane
   * @param {number} w           slice
   * @param {number[]} from      [u, v] in columns and rows; whole numbers are voxel centres
   * @param {number[]} to        [u, v]
   * @param {number} radius      mm
   * @param {number} label
   * @param {(voxel: number) => boolean} [accepts]  whether a voxel of the regions may be painted; all by default
   * @returns {Touched}
   */
  brush(plane, w, from, to, radius, label, accepts) {
    const { spacingU, spacingV } = plane;
    const reachU = radius / spacingU;
    const reachV = radius / spacingV;
    const u0 = Math.max(0, Math.ceil(Math.min(from[0], to[0]) - reachU));
    const u1 = Math.min(plane.width - 1, Math.floor(Math.max(from[0], to[0]) + reachU));
    const v0 = Math.max(0, Math.ceil(Math.min(from[1], to[1]) - reachV));
    const v1 = Math.min(plane.height - 1, Math.floor(Math.max(from[1], to[1]) + reachV));
    const alongU = (to[0] - from[0]) * spacingU;
    const alongV = (to[1] - from[1]) * spacingV;
    const length = alongU * alongU + alongV * alongV;
    const voxels = [];
    for (let v = v0; v <= v1; v++) {
      for (let u = u0; u <= u1; u++) {
        const offU = (u - from[0]) * spacingU;
        const offV = (v - from[1]) * spacingV;
        const share = length === 0 ? 0 : Math.min(1, Math.max(0, (offU * alongU + offV * alongV) / length));
        const missU = offU - share * alongU;
        const missV = offV - share * alongV;
        if (missU * missU + missV * missV <= radius * radius) voxels.push(indexOf(plane, u, v, w));
      }
    }
    // A brush smaller than a voxel paints the voxel under it.
    const u = Math.round(to[0]);
    const v = Math.round(to[1]);
    if (voxels.length === 0 && u >= 0 && v >= 0 && u < plane.width && v < plane.height) {
      return { ...this._set([indexOf(plane, u, v, w)], label, accepts), rect: [u, v, u, v] };
    }
    return { ...this._set(voxels, label, accepts), rect: u1 < u0 || v1 < v0 ? null : [u0, v0, u1, v1] };
  }

  /** Draw as with :js:`brush`, but with a ball that reaches into the slices around. */
  ball(plane, w, from, to, radius, label, accepts) {
    const reach = Math.floor(radius / plane.spacingW);
    const here = this.brush(plane, w, from, to, radius, label, accepts);
    for (let away = -reach; away <= reach; away++) {
      const slice = w + away;
      if (away === 0 || slice < 0 || slice >= plane.depth) continue;
      const within = Math.sqrt(radius ** 2 - (away * plane.spacingW) ** 2);
      here.changed += this.brush(plane, slice, from, to, within, label, accepts).changed;
    }
    return here;
  }

  /**
   * Fill a polygon.
   *
   * @param {import("./planes.js").Plane} plane
   * @param {number} w
   * @param {number[][]} points  corners [u, v]
   * @param {number} label
   * @returns {Touched}
   */
  polygon(plane, w, points, label) {
    if (points.length < 3) return { changed: 0, own: 0, blocked: [], rect: null };
    const columns = points.map((point) => point[0]);
    const rows = points.map((point) => point[1]);
    const v0 = Math.max(0, Math.ceil(Math.min(...rows)));
    const v1 = Math.min(plane.height - 1, Math.floor(Math.max(...rows)));
    const voxels = [];
    for (let v = v0; v <= v1; v++) {
      const crossings = [];
      for (let i = 0; i < points.length; i++) {
        const [ua, va] = points[i];
        const [ub, vb] = points[(i + 1) % points.length];
        if (va <= v !== vb <= v) crossings.push(ua + ((v - va) / (vb - va)) * (ub - ua));
      }
      crossings.sort((a, b) => a - b);
      for (let i = 0; i + 1 < crossings.length; i += 2) {
        const last = Math.min(plane.width - 1, Math.floor(crossings[i + 1]));
        for (let u = Math.max(0, Math.ceil(crossings[i])); u <= last; u++) voxels.push(indexOf(plane, u, v, w));
      }
    }
    const u0 = Math.max(0, Math.floor(Math.min(...columns)));
    const u1 = Math.min(plane.width - 1, Math.ceil(Math.max(...columns)));
    return { ...this._set(voxels, label), rect: v1 < v0 || u1 < u0 ? null : [u0, v0, u1, v1] };
  }

  /**
   * Fill the connected area of one label around a point, within its region and slice.
   *
   * @param {import("./planes.js").Plane} plane
   * @param {number} w
   * @param {number[]} point  [u, v]
   * @param {number} label
   * @returns {Touched}
   */
  fill(plane, w, point, label) {
    const start = [Math.round(point[0]), Math.round(point[1])];
    if (start[0] < 0 || start[1] < 0 || start[0] >= plane.width || start[1] >= plane.height) {
      return { changed: 0, own: 0, blocked: [], rect: null };
    }
    const seed = indexOf(plane, start[0], start[1], w);
    const region = this.regions[seed];
    if (region === 0) return { changed: 0, own: 0, blocked: [seed], rect: [...start, ...start] };
    const old = this.labels[seed];
    const seen = new Uint8Array(plane.width * plane.height);
    const rect = [...start, ...start];
    const voxels = [];
    const queue = [start];
    seen[start[1] * plane.width + start[0]] = 1;
    while (queue.length > 0) {
      const [u, v] = queue.pop();
      voxels.push(indexOf(plane, u, v, w));
      rect[0] = Math.min(rect[0], u);
      rect[1] = Math.min(rect[1], v);
      rect[2] = Math.max(rect[2], u);
      rect[3] = Math.max(rect[3], v);
      for (const [nu, nv] of [
        [u - 1, v],
        [u + 1, v],
        [u, v - 1],
        [u, v + 1],
      ]) {
        if (nu < 0 || nv < 0 || nu >= plane.width || nv >= plane.height || seen[nv * plane.width + nu]) continue;
        seen[nv * plane.width + nu] = 1;
        const voxel = indexOf(plane, nu, nv, w);
        if (this.regions[voxel] === region && this.labels[voxel] === old) queue.push([nu, nv]);
      }
    }
    return { ...this._set(voxels, label), rect };
  }

  /**
   * Set a whole region to one label or to the model's labels.
   *
   * @param {{number: number, box: number[][]}} region
   * @param {number[]} shape
   * @param {number|Uint8Array} label  the label, or a volume whose labels are taken
   * @returns {number} number of changed voxels
   */
  setRegion({ number, box }, [, ny, nx], label) {
    let changed = 0;
    for (let z = box[0][0]; z <= box[1][0]; z++) {
      for (let y = box[0][1]; y <= box[1][1]; y++) {
        for (let x = box[0][2]; x <= box[1][2]; x++) {
          const voxel = (z * ny + y) * nx + x;
          if (this.regions[voxel] === number) changed += this._write(voxel, label[voxel] ?? label);
        }
      }
    }
    if (changed) this.version++;
    return changed;
  }

  /**
   * The slices of a plane in which a region was drawn by hand, in order, as far as it is not undone.
   *
   * @param {{number: number}} region
   * @param {import("./planes.js").Plane} plane
   * @param {number[]} shape
   * @returns {number[]}
   */
  drawnSlices({ number }, plane, shape) {
    const found = new Set();
    for (const { axis, voxels } of this._undo) {
      if (axis !== plane.axis) continue;
      for (const voxel of voxels) if (this.regions[voxel] === number) found.add(sliceOf(plane, voxel, shape));
    }
    return [...found].sort((a, b) => a - b);
  }

  /**
   * Fill a region between the slices in which it was drawn by hand, see :js:`drawnSlices`.
   *
   * @param {{number: number, box: number[][]}} region
   * @param {import("./planes.js").Plane} plane
   * @param {number[]} shape
   * @returns {number|null} number of changed voxels, or null if no slices lie between drawn ones
   */
  fillBetween(region, plane, shape) {
    const drawn = this.drawnSlices(region, plane, shape);
    if (drawn.every((slice, i) => i === 0 || slice === drawn[i - 1] + 1)) return null;
    // With what lies around the region, so that shapes do not end at its sides.
    const corners = region.box.map((corner) => columnRow(plane, corner));
    const [u0, v0] = [0, 1].map((i) => Math.max(0, Math.min(corners[0][i], corners[1][i]) - AROUND));
    const u1 = Math.min(plane.width - 1, Math.max(corners[0][0], corners[1][0]) + AROUND);
    const v1 = Math.min(plane.height - 1, Math.max(corners[0][1], corners[1][1]) + AROUND);
    const width = u1 - u0 + 1;
    const places = Array.from({ length: width * (v1 - v0 + 1) }, (_, i) => [u0 + (i % width), v0 + Math.floor(i / width)]);
    const labelsIn = (w) => Uint8Array.from(places, ([u, v]) => this.labels[indexOf(plane, u, v, w)]);
    let changed = 0;
    for (let i = 1; i < drawn.length; i++) {
      const [first, last] = [drawn[i - 1], drawn[i]];
      if (last === first + 1) continue;
      const spacing = [plane.spacingU, plane.spacingV];
      labelsBetween(labelsIn(first), labelsIn(last), last - first - 1, width, spacing).forEach((labels, step) => {
        places.forEach(([u, v], at) => {
          const voxel = indexOf(plane, u, v, first + 1 + step);
          if (this.regions[voxel] === region.number) changed += this._write(voxel, labels[at]);
        });
      });
    }
    if (changed) this.version++;
    return changed;
  }

  /** Whether any label of a region differs from the model's. */
  differs({ number, box }, [, ny, nx]) {
    for (let z = box[0][0]; z <= box[1][0]; z++) {
      for (let y = box[0][1]; y <= box[1][1]; y++) {
        for (let x = box[0][2]; x <= box[1][2]; x++) {
          const voxel = (z * ny + y) * nx + x;
          if (this.regions[voxel] === number && this.labels[voxel] !== this.model[voxel]) return true;
        }
      }
    }
    return false;
  }

  /** Undo the last stroke. @returns {boolean} whether there was one */
  undo() {
    return this._replay(this._undo, this._redo, "before");
  }

  /** Redo the last undone stroke. @returns {boolean} whether there was one */
  redo() {
    return this._replay(this._redo, this._undo, "after");
  }

  /** Whether there are strokes to undo and to redo. */
  get history() {
    return { undo: this._undo.length > 0, redo: this._redo.length > 0 };
  }

  /**
   * The changes since the last save, as runs of one label.
   *
   * @returns {{runs: number[][], voxels: number[]}} runs [start, length, label] in order, and all voxels concerned
   */
  changes() {
    const voxels = [...new Set(this._unsaved.flat())].sort((a, b) => a - b);
    const runs = [];
    for (const voxel of voxels) {
      const label = this.labels[voxel];
      if (label === this.saved[voxel]) continue;
      const last = runs[runs.length - 1];
      if (last && last[0] + last[1] === voxel && last[2] === label) last[1]++;
      else runs.push([voxel, 1, label]);
    }
    return { runs, voxels };
  }

  /** Mark changes as saved; later changes remain unsaved. */
  confirm({ runs }) {
    for (const [start, length, label] of runs) this.saved.fill(label, start, start + length);
    const rest = new Set();
    for (const voxel of new Set(this._unsaved.flat())) {
      if (this.labels[voxel] !== this.saved[voxel]) rest.add(voxel);
    }
    this._unsaved = rest.size ? [[...rest]] : [];
  }

  _replay(from, to, which) {
    const stroke = from.pop();
    if (!stroke) return false;
    stroke.voxels.forEach((voxel, i) => {
      this.labels[voxel] = stroke[which][i];
    });
    to.push(stroke);
    this._unsaved.push(stroke.voxels);
    this.version++;
    return true;
  }

  _set(voxels, label, accepts) {
    const blocked = [];
    let [changed, own] = [0, 0];
    for (const voxel of voxels) {
      if (this.regions[voxel] === 0) blocked.push(voxel);
      else own++;
      if (this.regions[voxel] && (!accepts || accepts(voxel))) changed += this._write(voxel, label);
    }
    if (changed) this.version++;
    return { changed, own, blocked };
  }

  _write(voxel, label) {
    const before = this.labels[voxel];
    if (before === label) return 0;
    this._stroke.voxels.push(voxel);
    this._stroke.before.push(before);
    this._stroke.after.push(label);
    this.labels[voxel] = label;
    return 1;
  }
}

/**
 * The three planes of a volume (Z, Y, X), whose indices increase towards superior, posterior and left, and the
 * positions of their voxels in the flat array. Slices are drawn in radiological convention: the patient's right on the
 * left, anterior at the top of axial slices, superior at the top of the others.
 *
 * @typedef {object} Plane
 * @property {string} name
 * @property {number} axis       axis of the volume perpendicular to the slices: 0 Z, 1 Y, 2 X
 * @property {number} width      number of columns of a slice
 * @property {number} height     number of rows of a slice
 * @property {number} depth      number of slices
 * @property {number} offset     index of column 0, row 0 of slice 0
 * @property {number} strideU    stride to the next column
 * @property {number} strideV    stride to the next row
 * @property {number} strideW    stride to the next slice
 * @property {number} spacingU   distance between columns, mm
 * @property {number} spacingV   distance between rows, mm
 * @property {number} spacingW   distance between slices, mm
 * @property {string[]} sides    letters of the left, right, top and bottom side
 */

/**
 * @param {number[]} shape    [z, y, x]
 * @param {number[]} spacing  [z, y, x], mm
 * @returns {{axial: Plane, coronal: Plane, sagittal: Plane}}
 */
export function planesOf([nz, ny, nx], [dz, dy, dx]) {
  const slice = nx * ny;
  const upsideDown = (nz - 1) * slice;
  return {
    axial: {
      name: "axial",
      axis: 0,
      width: nx,
      height: ny,
      depth: nz,
      offset: 0,
      strideU: 1,
      strideV: nx,
      strideW: slice,
      spacingU: dx,
      spacingV: dy,
      spacingW: dz,
      sides: ["R", "L", "A", "P"],
    },
    coronal: {
      name: "coronal",
      axis: 1,
      width: nx,
      height: nz,
      depth: ny,
      offset: upsideDown,
      strideU: 1,
      strideV: -slice,
      strideW: nx,
      spacingU: dx,
      spacingV: dz,
      spacingW: dy,
      sides: ["R", "L", "S", "I"],
    },
    sagittal: {
      name: "sagittal",
      axis: 2,
      width: ny,
      height: nz,
      depth: nx,
      offset: upsideDown,
      strideU: nx,
      strideV: -slice,
      strideW: 1,
      spacingU: dy,
      spacingV: dz,
      spacingW: dx,
      sides: ["A", "P", "S", "I"],
    },
  };
}

/** The index in the flat array of column u, row v of slice w. */
export function indexOf(plane, u, v, w) {
  return plane.offset + u * plane.strideU + v * plane.strideV + w * plane.strideW;
}

/** The slice of a plane that a voxel of the flat array is in. */
export function sliceOf(plane, voxel, [, ny, nx]) {
  return [Math.floor(voxel / (ny * nx)), Math.floor(voxel / nx) % ny, voxel % nx][plane.axis];
}

/** The column and row of a voxel [z, y, x] in a plane. */
export function columnRow(plane, [z, y, x]) {
  if (plane.axis === 0) return [x, y];
  return [plane.axis === 1 ? x : y, plane.height - 1 - z];
}

/** The voxel [z, y, x] at column u, row v of slice w. */
export function voxelAt(plane, u, v, w) {
  if (plane.axis === 0) return [w, v, u];
  const z = plane.height - 1 - v;
  return plane.axis === 1 ? [z, w, u] : [z, u, w];
}

/**
 * Copy a slice in row-major order.
 *
 * @template {Uint8Array|Uint16Array|Int16Array|Float32Array} T
 * @param {T} data
 * @param {Plane} plane
 * @param {number} w
 * @returns {T}
 */
export function extractSlice(data, plane, w) {
  const out = new data.constructor(plane.width * plane.height);
  let at = 0;
  for (let v = 0; v < plane.height; v++) {
    let from = indexOf(plane, 0, v, w);
    for (let u = 0; u < plane.width; u++, from += plane.strideU) out[at++] = data[from];
  }
  return out;
}

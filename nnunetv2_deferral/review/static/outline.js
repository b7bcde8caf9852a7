/** The outlines of the labels of a slice, as line segments along voxel edges. */

/**
 * @param {ArrayLike<number>} slice  values in row-major order
 * @param {number} width
 * @param {number} height
 * @returns {Map<number, number[]>}  for each nonzero value, flat [u0, v0, u1, v1, ...] in voxel corners: voxel (u, v)
 *   covers u to u + 1 and v to v + 1. Adjacent segments along a row or column are joined.
 */
export function outlinesOf(slice, width, height) {
  const lines = new Map();
  const add = (value, u0, v0, u1, v1) => {
    let list = lines.get(value);
    if (!list) lines.set(value, (list = []));
    list.push(u0, v0, u1, v1);
  };
  // Edges between rows belong to the outlines of both the value above and the value below.
  for (let v = 0; v <= height; v++) {
    let from = 0;
    let above = 0;
    let below = 0;
    for (let u = 0; u <= width; u++) {
      const inside = u < width;
      const up = inside && v > 0 ? slice[(v - 1) * width + u] : 0;
      const down = inside && v < height ? slice[v * width + u] : 0;
      if (up === above && down === below) continue;
      if (above !== below) {
        if (above) add(above, from, v, u, v);
        if (below) add(below, from, v, u, v);
      }
      [from, above, below] = [u, up, down];
    }
  }
  for (let u = 0; u <= width; u++) {
    let from = 0;
    let before = 0;
    let behind = 0;
    for (let v = 0; v <= height; v++) {
      const inside = v < height;
      const left = inside && u > 0 ? slice[v * width + u - 1] : 0;
      const right = inside && u < width ? slice[v * width + u] : 0;
      if (left === before && right === behind) continue;
      if (before !== behind) {
        if (before) add(before, u, from, u, v);
        if (behind) add(behind, u, from, u, v);
      }
      [from, before, behind] = [v, left, right];
    }
  }
  return lines;
}

/** Which region is next, and where the voxels of a mask are. Regions are listed with the most useful one first. */

/**
 * @typedef {object} Region
 * @property {number} number
 * @property {number} voxels
 * @property {number} gain       by how much answering it is expected to raise the Dice of the case
 * @property {number|null} rank  its place on the worklist, if there is one
 * @property {number[]} centre   [z, y, x]
 * @property {number[][]} box    first and last voxel
 */

/**
 * The most useful region without an answer.
 *
 * @param {Region[]} regions
 * @param {Set<number>} done
 * @returns {Region|null}  null if all are answered
 */
export function bestOpenRegion(regions, done) {
  return regions.find((region) => !done.has(region.number)) ?? null;
}

/**
 * The region without an answer that comes after the one at hand, around the end of the list.
 *
 * @param {Region[]} regions
 * @param {Set<number>} done
 * @param {number} [current]  the number of the region at hand
 * @returns {Region|null}     the one at hand if no other is open, null if all are answered
 */
export function nextOpenRegion(regions, done, current) {
  const at = regions.findIndex((region) => region.number === current) + 1;
  return bestOpenRegion([...regions.slice(at), ...regions.slice(0, at)], done);
}

/** The region before or after another in the list, around its ends. */
export function neighbourRegion(regions, current, step) {
  if (!regions.length) return null;
  const at = regions.findIndex((region) => region.number === current);
  return regions[(at + step + regions.length) % regions.length];
}

/**
 * Where the voxels of a mask are that are not 0.
 *
 * @param {ArrayLike<number>} volume
 * @param {number[]} shape  [z, y, x]
 * @returns {{box: number[][], centre: number[]}|null}  first and last voxel, and the middle of the fullest axial slice;
 *   null for an empty mask
 */
export function extentOf(volume, [nz, ny, nx]) {
  const low = [nz, ny, nx];
  const high = [-1, -1, -1];
  let [fullest, most, centre] = [-1, 0, null];
  for (let z = 0, at = 0; z < nz; z++) {
    let [voxels, sumY, sumX] = [0, 0, 0];
    for (let y = 0; y < ny; y++) {
      for (let x = 0; x < nx; x++, at++) {
        if (!volume[at]) continue;
        voxels++;
        sumY += y;
        sumX += x;
        low[1] = Math.min(low[1], y);
        low[2] = Math.min(low[2], x);
        high[1] = Math.max(high[1], y);
        high[2] = Math.max(high[2], x);
      }
    }
    if (!voxels) continue;
    low[0] = Math.min(low[0], z);
    high[0] = z;
    if (voxels > most) [fullest, most, centre] = [z, voxels, [sumY / voxels, sumX / voxels]];
  }
  return centre && { box: [low, high], centre: [fullest, ...centre] };
}

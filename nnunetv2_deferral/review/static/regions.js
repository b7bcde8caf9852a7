/** Order of regions, and extent of a mask. Lists of regions are in the order in which they should be visited. */

/**
 * @typedef {object} Region
 * @property {number} number
 * @property {number} voxels
 * @property {number} gain       expected increase of the Dice of the case if it is answered
 * @property {number|null} rank  rank on the worklist; null without a worklist
 * @property {number[]} centre   [z, y, x]
 * @property {number[][]} box    first and last voxel
 */

/**
 * The first region without an answer.
 *
 * @param {Region[]} regions
 * @param {Set<number>} done
 * @returns {Region|null}  null if all are answered
 */
export function bestOpenRegion(regions, done) {
  return regions.find((region) => !done.has(region.number)) ?? null;
}

/**
 * The next region without an answer after the current one, cyclically.
 *
 * @param {Region[]} regions
 * @param {Set<number>} done
 * @param {number} [current]  number of the current region
 * @returns {Region|null}     the current region if no other is open; null if all are answered
 */
export function nextOpenRegion(regions, done, current) {
  const at = regions.findIndex((region) => region.number === current) + 1;
  return bestOpenRegion([...regions.slice(at), ...regions.slice(0, at)], done);
}

/** The region before or after the current one, cyclically. */
export function neighbourRegion(regions, current, step) {
  if (!regions.length) return null;
  const at = regions.findIndex((region) => region.number === current);
  return regions[(at + step + regions.length) % regions.length];
}

/**
 * The extent of the nonzero voxels of a mask.
 *
 * @param {ArrayLike<number>} volume
 * @param {number[]} shape  [z, y, x]
 * @returns {{box: number[][], centre: number[]}|null}  first and last voxel, and the centroid of the axial slice with
 *   the most voxels; null for an empty mask
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

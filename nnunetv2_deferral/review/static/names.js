/** Long names, of which the part that tells them apart is shown. */

/** Characters that are always shown: as many as a narrow list has room for beside some of the beginning. */
const [FEWEST, MOST] = [12, 18];

/**
 * How names are cut where they do not fit.
 *
 * @param {string[]} names  all names of a list
 * @returns {(name: string) => [string, string]}  a name's beginning, which may be cut, and what is always shown
 */
export function cutter(names) {
  const same = shared(names);
  const sameEnd = shared(names.map((name) => [...name].reverse().join("")));
  return (name) => {
    if (name.length - same > MOST && name.length - sameEnd - same < MOST) {
      return [name.slice(0, same), `${name.slice(same, same + MOST - 1)}…`]; // what follows is the same in all names
    }
    const shown = name.length - same > MOST ? FEWEST : Math.max(FEWEST, name.length - same);
    return [name.slice(0, -shown), name.slice(-shown)];
  };
}

/** How many characters all names have in common at their beginning. */
function shared(names) {
  const [first = ""] = names;
  let same = 0;
  while (same < first.length && names.every((name) => name[same] === first[same])) same++;
  return same;
}

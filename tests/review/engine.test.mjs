/** The paint engine and its neighbours, run by `node --test` on a copy of the page's modules. */

import assert from "node:assert/strict";
import { mock, test } from "node:test";

import { labelsBetween } from "./between.js";
import { cutter } from "./names.js";
import { outlinesOf } from "./outline.js";
import { PaintSession } from "./paint.js";
import { columnRow, extractSlice, indexOf, planesOf, voxelAt } from "./planes.js";
import { bestOpenRegion, extentOf, neighbourRegion, nextOpenRegion } from "./regions.js";
import { Saver } from "./saver.js";
import { applyWindow, percentileWindow } from "./colours.js";

const SHAPE = [4, 6, 8];
const SIZE = 4 * 6 * 8;
const PLANES = planesOf(SHAPE, [2, 1, 0.5]);
const at = (z, y, x) => (z * 6 + y) * 8 + x;

/** A session in which the whole volume is one region. */
function everywhere() {
  const labels = new Uint8Array(SIZE);
  return new PaintSession({ labels, model: new Uint8Array(SIZE).fill(2), regions: new Uint16Array(SIZE).fill(1) });
}

/** A session whose region 1 is columns 2 to 4 of all slices, and region 2 column 7. */
function fenced() {
  const regions = new Uint16Array(SIZE);
  for (let i = 0; i < SIZE; i++) regions[i] = i % 8 >= 2 && i % 8 <= 4 ? 1 : i % 8 === 7 ? 2 : 0;
  return new PaintSession({ labels: new Uint8Array(SIZE), model: new Uint8Array(SIZE).fill(2), regions });
}

function stroke(session, work) {
  session.begin();
  const touched = work();
  session.commit();
  return touched;
}

test("of long names the part that tells them apart is shown", () => {
  const cut = (...names) => names.map(cutter(names));
  const study = ["study_of_lungs_patient_0001_portal_a", "study_of_lungs_patient_0002_portal_b"];
  assert.deepEqual(cut(...study), [
    ["study_of_lungs_patient_0", "001_portal_a"],
    ["study_of_lungs_patient_0", "002_portal_b"],
  ]);
  const venous = ["study_patient_0001_portal_venous_a", "study_patient_0002_portal_venous_b"];
  assert.deepEqual(cut(...venous)[0], ["study_patient_000", "1_portal_venous_a"]);
  const same = ["sub-001_session-01_run-1_FLAIR_space", "sub-012_session-01_run-1_FLAIR_space"];
  assert.deepEqual(cut(...same)[1], ["sub-0", "12_session-01_run…"]);
  assert.deepEqual(cut("only_one_case_with_a_long_name"), [["only_one_case_with", "_a_long_name"]]);
  assert.deepEqual(cut("a", "b"), [["", "a"], ["", "b"]]);
  assert.deepEqual(cut(), []);
});

const painted = (session, label = 1) => [...session.labels.keys()].filter((i) => session.labels[i] === label);

test("every voxel is found again through every plane", () => {
  for (const plane of Object.values(PLANES)) {
    for (let w = 0; w < plane.depth; w++) {
      for (let v = 0; v < plane.height; v++) {
        for (let u = 0; u < plane.width; u++) {
          const [z, y, x] = voxelAt(plane, u, v, w);
          assert.equal(indexOf(plane, u, v, w), at(z, y, x));
          assert.deepEqual(columnRow(plane, [z, y, x]), [u, v]);
        }
      }
    }
  }
});

test("superior is on top of coronal and sagittal slices, anterior on top of axial ones", () => {
  assert.deepEqual(voxelAt(PLANES.coronal, 0, 0, 0), [3, 0, 0]);
  assert.deepEqual(voxelAt(PLANES.sagittal, 0, 0, 0), [3, 0, 0]);
  assert.deepEqual(voxelAt(PLANES.axial, 0, 0, 2), [2, 0, 0]);
});

test("a slice is copied row by row", () => {
  const data = Int16Array.from({ length: SIZE }, (_, i) => i);
  const slice = extractSlice(data, PLANES.sagittal, 5);
  assert.equal(slice.constructor, Int16Array);
  assert.equal(slice[0], at(3, 0, 5));
  assert.equal(slice[1], at(3, 1, 5));
  assert.equal(slice.at(-1), at(0, 5, 5));
});

test("a brush paints all voxels within its radius in millimetres and no others", () => {
  for (const plane of Object.values(PLANES)) {
    const session = everywhere();
    const [from, to, radius] = [[1.2, 1.4], [4.7, 2.6], 1.1];
    const touched = stroke(session, () => session.brush(plane, 1, from, to, radius, 1));
    const expected = [];
    for (let v = 0; v < plane.height; v++) {
      for (let u = 0; u < plane.width; u++) {
        let least = Infinity;
        for (let s = 0; s <= 1000; s++) {
          const t = s / 1000;
          const du = (u - from[0] - t * (to[0] - from[0])) * plane.spacingU;
          const dv = (v - from[1] - t * (to[1] - from[1])) * plane.spacingV;
          least = Math.min(least, Math.hypot(du, dv));
        }
        if (least <= radius) expected.push(indexOf(plane, u, v, 1));
      }
    }
    assert.deepEqual(
      painted(session),
      expected.sort((a, b) => a - b),
    );
    assert.equal(touched.changed, expected.length);
    const [u0, v0, u1, v1] = touched.rect;
    for (const voxel of expected) {
      const [u, v] = columnRow(plane, [Math.floor(voxel / 48), Math.floor(voxel / 8) % 6, voxel % 8]);
      assert.ok(u >= u0 && u <= u1 && v >= v0 && v <= v1);
    }
  }
});

test("a brush smaller than a voxel paints the one under it", () => {
  const session = everywhere();
  stroke(session, () => session.brush(PLANES.axial, 0, [3.4, 2.4], [3.4, 2.4], 0.01, 1));
  assert.deepEqual(painted(session), [at(0, 2, 3)]);
});

test("outside of the regions nothing changes, and the blocked voxels are told", () => {
  const session = fenced();
  const touched = stroke(session, () => session.brush(PLANES.axial, 1, [0, 3], [6, 3], 0.4, 1));
  assert.deepEqual(painted(session), [at(1, 3, 2), at(1, 3, 3), at(1, 3, 4)]);
  assert.deepEqual(
    touched.blocked,
    [0, 1, 5, 6].map((x) => at(1, 3, x)),
  );
  assert.equal(stroke(session, () => session.brush(PLANES.axial, 1, [-9, 3], [-8, 3], 0.4, 1)).rect, null);
});

test("a polygon fills what is inside of it", () => {
  const session = everywhere();
  const corners = [
    [1.5, 0.5],
    [5.5, 0.5],
    [5.5, 3.5],
    [1.5, 3.5],
  ];
  stroke(session, () => session.polygon(PLANES.axial, 2, corners, 1));
  const expected = [];
  for (let y = 1; y <= 3; y++) for (let x = 2; x <= 5; x++) expected.push(at(2, y, x));
  assert.deepEqual(painted(session), expected);
  assert.equal(stroke(session, () => session.polygon(PLANES.axial, 2, corners.slice(0, 2), 1)).changed, 0);
});

test("fill stays inside its region, its slice and its label", () => {
  const session = fenced();
  stroke(session, () => session.brush(PLANES.axial, 1, [2, 3], [4, 3], 0.2, 2));
  stroke(session, () => session.fill(PLANES.axial, 1, [3, 1], 1));
  const expected = [];
  for (let y = 0; y < 3; y++) for (let x = 2; x <= 4; x++) expected.push(at(1, y, x));
  assert.deepEqual(painted(session), expected);
  const blocked = stroke(session, () => session.fill(PLANES.axial, 1, [0, 0], 1));
  assert.deepEqual([blocked.changed, blocked.blocked], [0, [at(1, 0, 0)]]);
});

test("a region can be given back to the model", () => {
  const session = fenced();
  session.begin();
  const region = {
    number: 2,
    box: [
      [0, 0, 7],
      [3, 5, 7],
    ],
  };
  assert.equal(session.setRegion(region, SHAPE, session.model), 24);
  session.commit();
  assert.ok(painted(session, 2).every((voxel) => voxel % 8 === 7));
});

test("undo and redo restore every label, in any order, also over earlier strokes", () => {
  const session = everywhere();
  const states = [session.labels.slice()];
  let seed = 1;
  const random = (n) => (seed = (seed * 16807) % 2147483647) % n;
  for (let i = 0; i < 40; i++) {
    const plane = Object.values(PLANES)[random(3)];
    const point = () => [random(plane.width), random(plane.height)];
    session.begin();
    session.brush(plane, random(plane.depth), point(), point(), 1, random(3));
    if (session.commit()) states.push(session.labels.slice());
  }
  for (let i = states.length - 2; i >= 0; i--) {
    assert.ok(session.undo());
    assert.deepEqual(session.labels, states[i]);
  }
  assert.equal(session.undo(), false);
  for (const state of states.slice(1)) {
    assert.ok(session.redo());
    assert.deepEqual(session.labels, state);
  }
  assert.equal(session.redo(), false);
});

test("a new stroke ends what could be done again", () => {
  const session = everywhere();
  stroke(session, () => session.brush(PLANES.axial, 0, [1, 1], [1, 1], 0.1, 1));
  session.undo();
  stroke(session, () => session.brush(PLANES.axial, 0, [2, 1], [2, 1], 0.1, 1));
  assert.deepEqual(session.history, { undo: true, redo: false });
});

test("applied to what is saved, the runs give the labels; what is painted meanwhile stays unsaved", () => {
  const session = everywhere();
  const server = new Uint8Array(SIZE);
  const apply = ({ runs }) => runs.forEach(([start, length, label]) => server.fill(label, start, start + length));
  stroke(session, () => session.brush(PLANES.coronal, 2, [1, 1], [6, 2], 1.2, 1));
  session.undo();
  session.redo();
  const first = session.changes();
  stroke(session, () => session.brush(PLANES.axial, 2, [3, 2], [3, 2], 0.1, 2));
  apply(first);
  session.confirm(first);
  assert.deepEqual(session.changes().runs, [[at(2, 2, 3), 1, 2]]);
  apply(session.changes());
  session.confirm(session.changes());
  assert.deepEqual(server, session.labels);
  assert.deepEqual(session.changes().runs, []);
  for (const { runs } of [first]) {
    for (let i = 1; i < runs.length; i++) assert.ok(runs[i][0] >= runs[i - 1][0] + runs[i - 1][1]);
  }
});

test("what is painted and taken back needs no saving", () => {
  const session = everywhere();
  stroke(session, () => session.brush(PLANES.axial, 0, [1, 1], [4, 1], 1, 1));
  session.undo();
  assert.deepEqual(session.changes().runs, []);
});

test("the first open region of the list is the best, and the one after that at hand is next", () => {
  const regions = [{ number: 1 }, { number: 2 }, { number: 3 }];
  const best = (done) => bestOpenRegion(regions, new Set(done))?.number;
  assert.deepEqual([[], [1], [1, 2], [1, 2, 3]].map(best), [1, 2, 3, undefined]);
  const next = (done, current) => nextOpenRegion(regions, new Set(done), current)?.number;
  assert.equal(next([], 1), 2);
  assert.equal(next([2], 1), 3);
  assert.equal(next([], 3), 1);
  assert.equal(next([2, 3], 1), 1);
  assert.equal(next([1, 2, 3], 1), undefined);
  assert.equal(next([1], undefined), 2);
  assert.equal(neighbourRegion(regions, 1, -1).number, 3);
});

test("the extent of a mask is its box and the middle of its fullest slice", () => {
  const mask = new Uint8Array(SIZE);
  for (const voxel of [at(1, 2, 3), at(2, 4, 5), at(2, 4, 7)]) mask[voxel] = 1;
  assert.deepEqual(extentOf(mask, SHAPE), {
    box: [
      [1, 2, 3],
      [2, 4, 7],
    ],
    centre: [2, 4, 6],
  });
  assert.equal(extentOf(new Uint8Array(SIZE), SHAPE), null);
});

test("outlines run along the edges between values, joined where they are straight", () => {
  const lines = outlinesOf(Uint8Array.from([0, 1, 1, 0, 2, 0]), 3, 2);
  const pieces = (value) => {
    const flat = lines.get(value);
    return Array.from({ length: flat.length / 4 }, (_, i) => flat.slice(4 * i, 4 * i + 4).join()).sort();
  };
  assert.deepEqual(pieces(1), ["1,0,1,1", "1,0,3,0", "1,1,2,1", "2,1,3,1", "3,0,3,1"]);
  assert.deepEqual(pieces(2), ["1,1,1,2", "1,1,2,1", "1,2,2,2", "2,1,2,2"]);
});

test("grey values outside of the window are black and white", () => {
  const rgba = new Uint8ClampedArray(16);
  applyWindow([Int16Array.from([-500, 0, 50, 900])], { centre: 50, width: 100 }, rgba);
  assert.deepEqual([rgba[0], rgba[4], rgba[12]], [0, 0, 255]);
  assert.ok(Math.abs(rgba[8] - 127.5) < 1);
  assert.deepEqual(percentileWindow(Int16Array.from([0, 10, 20, 30, 40]), 0, 100), { centre: 20, width: 40 });
  assert.deepEqual(percentileWindow(Int16Array.from([0, 10, 20, 30, 40]), 25, 75), { centre: 20, width: 20 });
  assert.ok(percentileWindow(new Float32Array([NaN, 1, 1]), 0.5, 99.5).width > 0);
});

/** A saver on a server that answers as told. */
function saving(answers) {
  const session = everywhere();
  const sent = [];
  const states = [];
  const saver = new Saver({
    session,
    revision: 0,
    answers: () => ({ done: [] }),
    takeSeconds: () => 1,
    onState: (state) => states.push(state),
    send: async (body) => {
      sent.push(body);
      const answer = answers.shift() ?? "ok";
      if (answer === "ok") return { revision: body.revision + 1 };
      throw Object.assign(new Error(answer), { refused: answer === "refused" });
    },
  });
  return { session, saver, sent, states };
}

const dab = (session, x) => stroke(session, () => session.brush(PLANES.axial, 0, [x, 1], [x, 1], 0.1, 1));

test("a save that was lost is sent again under its key, and later strokes follow in the next", async () => {
  const { session, saver, sent } = saving(["lost"]);
  dab(session, 1);
  saver.touch();
  assert.equal(await saver.flush(), false);
  assert.equal(saver.isSafe, false);
  dab(session, 2);
  saver.touch();
  assert.equal(await saver.flush(), true);
  assert.deepEqual(
    sent.map(({ key }) => key === sent[0].key),
    [true, true, false],
  );
  assert.deepEqual(
    sent.map(({ revision }) => revision),
    [0, 0, 1],
  );
  assert.deepEqual(sent[1].runs, sent[0].runs);
  assert.deepEqual(sent[2].runs, [[at(0, 1, 2), 1, 1]]);
  saver.stop();
});

test("a refusal ends saving", async () => {
  const { session, saver, sent, states } = saving(["refused"]);
  dab(session, 1);
  saver.touch();
  assert.equal(await saver.flush(), false);
  saver.touch();
  await saver.flush();
  assert.equal(sent.length, 1);
  assert.equal(states.at(-1), "refused");
});

test("it saves soon after the last stroke, and in between when somebody paints without a pause", async () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  const settle = async () => {
    for (let i = 0; i < 10; i++) await Promise.resolve();
  };
  try {
    const { session, saver, sent } = saving([]);
    dab(session, 1);
    saver.touch();
    mock.timers.tick(1100);
    assert.equal(sent.length, 0);
    mock.timers.tick(200);
    await settle();
    assert.equal(sent.length, 1);
    for (let i = 0; i < 14; i++) {
      dab(session, i % 7);
      saver.touch();
      mock.timers.tick(500);
      await settle();
    }
    assert.equal(sent.length, 2);
    saver.stop();
  } finally {
    mock.timers.reset();
  }
});

test("after a lost connection new strokes do not hurry the next try", async () => {
  mock.timers.enable({ apis: ["setTimeout", "Date"] });
  try {
    const { session, saver, sent } = saving(["lost", "lost"]);
    dab(session, 1);
    saver.touch();
    await saver.flush();
    for (let i = 0; i < 5; i++) {
      dab(session, i);
      saver.touch();
    }
    assert.equal(sent.length, 1);
    mock.timers.tick(1000);
    assert.equal(sent.length, 2);
    saver.stop();
  } finally {
    mock.timers.reset();
  }
});

test("a ball reaches into the slices around, as far as its radius and its region", () => {
  const session = everywhere();
  const touched = stroke(session, () => session.ball(PLANES.axial, 1, [4, 3], [4, 3], 2.5, 1));
  const slices = [0, 1, 2, 3].map((z) => painted(session).filter((i) => Math.floor(i / 48) === z).length);
  assert.deepEqual(slices.map((n) => n > 0), [true, true, true, false]);
  assert.ok(slices[0] < slices[1] && slices[0] === slices[2]);
  assert.equal(touched.changed, slices[0] + slices[1] + slices[2]);
  session.undo();
  assert.deepEqual(painted(session), []);
});

test("a stroke over voxels that have its label already is inside of the regions", () => {
  const session = fenced();
  const [first, again] = [0, 1].map(() => stroke(session, () => session.brush(PLANES.axial, 0, [2, 2], [2, 2], 1, 1)));
  assert.ok(first.changed > 0 && first.blocked.length > 0);
  assert.deepEqual([again.changed, again.own], [0, first.own]);
});

test("slices between two discs hold discs of radii between theirs", () => {
  const [width, height, spacing] = [41, 33, [0.5, 0.7]];
  const disc = (radius) =>
    Uint8Array.from({ length: width * height }, (_, i) => {
      const [u, v] = [(i % width) - 20, Math.floor(i / width) - 16];
      return Math.hypot(u * spacing[0], v * spacing[1]) <= radius ? 3 : 0;
    });
  const found = labelsBetween(disc(4), disc(9), 4, width, spacing);
  assert.equal(found.length, 4);
  found.forEach((slice, step) => {
    assert.deepEqual([...new Set(slice)].sort(), [0, 3]);
    const area = slice.filter((label) => label === 3).length * spacing[0] * spacing[1];
    assert.ok(Math.abs(Math.sqrt(area / Math.PI) - (5 + step)) < 0.3);
  });
  assert.deepEqual(labelsBetween(disc(6), disc(6), 1, width, spacing)[0], disc(6));
});

test("a shape that a slice lacks shrinks to nothing on the way there, and others stay", () => {
  const line = (text) => Uint8Array.from(text.repeat(9), Number);
  const between = labelsBetween(line("1111111022"), line("0000000022"), 3, 10, [1, 1]);
  const widths = between.map((slice) => slice.filter((label) => label === 1).length);
  assert.ok(63 > widths[0] && widths[0] > widths[1] && widths[1] > widths[2] && widths[2] > 0);
  for (const slice of between) assert.deepEqual([...slice.slice(8, 10)], [2, 2]);
});

test("a shape that fills a slice shrinks, too", () => {
  const full = new Uint8Array(20 * 20).fill(1);
  const small = full.map((_, i) => (i % 20 >= 8 && i % 20 < 12 && i >= 160 && i < 240 ? 1 : 0));
  for (const last of [new Uint8Array(400), small]) {
    const areas = labelsBetween(full, last, 5, 20, [1, 1]).map((slice) => slice.filter(Boolean).length);
    areas.forEach((area, i) => assert.ok(area < (areas[i - 1] ?? 400)));
    assert.ok(areas.at(-1) > 0 && areas.at(-1) < 80);
  }
});

test("distances agree with a search over all pixels", () => {
  const [width, height, spacing] = [9, 7, [1.5, 0.4]];
  let seed = 7;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  const slices = [0, 1].map(() => Uint8Array.from({ length: width * height }, () => (random() < 0.4 ? 1 : 0)));
  const signed = (slice) =>
    [...slice.keys()].map((i) => {
      // Outside of the slice is background.
      const [u, v] = [i % width, Math.floor(i / width)];
      const out = Math.min((u + 1) * spacing[0], (width - u) * spacing[0], (v + 1) * spacing[1], (height - v) * spacing[1]);
      let nearest = slice[i] ? out : Infinity;
      for (const j of slice.keys()) {
        const du = ((i % width) - (j % width)) * spacing[0];
        const dv = (Math.floor(i / width) - Math.floor(j / width)) * spacing[1];
        if (slice[j] !== slice[i]) nearest = Math.min(nearest, Math.hypot(du, dv));
      }
      return slice[i] ? nearest : -nearest;
    });
  const [one, other] = slices.map(signed);
  const [found] = labelsBetween(...slices, 1, width, spacing);
  found.forEach((label, i) => {
    if (Math.abs(one[i] + other[i]) > 1e-9) assert.equal(label, one[i] + other[i] > 0 ? 1 : 0);
  });
});

test("a region is filled between drawn slices, as one step that can be undone, and nothing else is", () => {
  const session = fenced();
  const region = { number: 1, box: [[0, 0, 2], [3, 5, 4]] };
  const draw = (w) => {
    session.begin(PLANES.axial);
    session.brush(PLANES.axial, w, [3, 2], [3, 3], 1, 1);
    session.commit();
  };
  const fill = (plane) => {
    session.begin();
    const changed = session.fillBetween(region, plane, SHAPE);
    session.commit();
    return changed;
  };
  draw(0);
  assert.equal(fill(PLANES.axial), null);
  draw(3);
  assert.deepEqual(session.drawnSlices(region, PLANES.axial, SHAPE), [0, 3]);
  assert.equal(fill(PLANES.coronal), null);
  const drawn = painted(session);
  assert.equal(fill(PLANES.axial), drawn.length);
  const of = (z) => drawn.filter((i) => i < 48).map((i) => i + z * 48);
  assert.deepEqual(painted(session), [0, 1, 2, 3].flatMap(of));
  assert.deepEqual(session.drawnSlices(region, PLANES.axial, SHAPE), [0, 3]);
  session.undo();
  assert.deepEqual(painted(session), drawn);
  session.undo();
  assert.deepEqual(session.drawnSlices(region, PLANES.axial, SHAPE), [0]);
});

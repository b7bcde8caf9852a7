/**
 * The 3D view: three planes and a rendering of the volume with a mask, without editing.
 *
 * This is the only module that uses NiiVue, which is loaded when the view is first opened. NiiVue receives NIfTI files
 * created in memory and loads nothing over the network.
 */

import { labelColour } from "./colours.js";
import { h } from "./dom.js";

const DATATYPES = new Map([
  [Uint8Array, 2],
  [Int16Array, 4],
  [Float32Array, 16],
]);
const BACKGROUND = [0, 0, 0, 1];

/**
 * Open the view in a dialog.
 *
 * @param {import("./scene.js").Scene} scene
 * @param {Uint8Array} mask     labels shown over the image
 * @param {number[]} labels     all labels except background
 */
export async function openVolumeView(scene, mask, labels) {
  const canvas = h("canvas");
  const message = h("p.note", {}, "Loading…");
  let viewer = null;
  const close = () => {
    viewer?.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    dialog.close();
    dialog.remove();
  };
  const dialog = h(
    "dialog.volume",
    { on: { cancel: close } },
    h("div.row", {}, h("h2", {}, "3D view"), message, h("span.fill"), h("button", { on: { click: close } }, "Close")),
    h("div.volume-canvas", {}, canvas),
  );
  document.body.append(dialog);
  dialog.showModal();
  try {
    viewer = await show(canvas, scene, mask, labels);
    message.textContent =
      "Drag in a plane to move the position, drag in the rendering to rotate it; use the wheel for slices and zoom.";
  } catch (error) {
    message.textContent = `The 3D view cannot be shown: ${error.message}`;
  }
}

async function show(canvas, scene, mask, labels) {
  if (!document.createElement("canvas").getContext("webgl2")) throw new Error("this browser does not support WebGL 2.");
  const { Niivue, NVImage, SLICE_TYPE } = await import("./vendor/niivue.js");
  const viewer = new Niivue({ logLevel: "error" });
  // NiiVue reads some options only when it loads volumes, so all are set beforehand.
  Object.assign(viewer.opts, {
    dragAndDropEnabled: false,
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    backColor: BACKGROUND,
    crosshairColor: [1, 1, 1, 0.35],
    crosshairWidth: 0.3,
    fontColor: [0.78, 0.81, 0.85, 1],
    show3Dcrosshair: true,
    sliceType: SLICE_TYPE.MULTIPLANAR,
    multiplanarForceRender: true,
    isOrientationTextVisible: scene.named,
    clipPlaneHotKey: "",
    viewModeHotKey: "",
    cycleClipPlaneHotKey: "",
  });
  await viewer.attachToCanvas(canvas);
  const { centre, width } = scene.window;
  const load = async (data, name, options) => {
    const file = niftiFile(NVImage, scene, data);
    viewer.addVolume(await NVImage.loadFromUrl({ url: file, name, colorbarVisible: false, ...options }));
  };
  await load(scene.drawn[0], "image.nii", {
    colormap: "gray",
    cal_min: centre - width / 2,
    cal_max: centre + width / 2,
  });
  await load(mask, "mask.nii", { opacity: 0.6 });
  const colours = labels.map(labelColour);
  viewer.volumes[1].setColormapLabel({
    R: [0, ...colours.map(([red]) => red)],
    G: [0, ...colours.map(([, green]) => green)],
    B: [0, ...colours.map(([, , blue]) => blue)],
    A: [0, ...labels.map(() => 255)],
    I: [0, ...labels],
    labels: ["", ...labels.map(String)],
  });
  viewer.opts.showLegend = false;
  viewer.updateGLVolume();
  const [z, y, x] = scene.position.map((at, axis) => (at + 0.5) / scene.shape[axis]);
  viewer.scene.crosshairPos = [1 - x, 1 - y, z]; // NiiVue's indices increase towards right and anterior
  viewer.drawScene();
  return viewer;
}

/** A NIfTI file of an array. Its indices increase towards left and posterior, NIfTI's mm towards right and anterior. */
function niftiFile(NVImage, { shape: [nz, ny, nx], spacing: [dz, dy, dx] }, data) {
  const affine = [
    -dx,
    0,
    0,
    (dx * (nx - 1)) / 2,
    0,
    -dy,
    0,
    (dy * (ny - 1)) / 2,
    0,
    0,
    dz,
    (-dz * (nz - 1)) / 2,
    0,
    0,
    0,
    1,
  ];
  return NVImage.createNiftiArray([nx, ny, nz], [dx, dy, dz], affine, DATATYPES.get(data.constructor), data);
}

/** Text over a slice: sides of the patient, plane and slice number, and a scale bar. */

const BAR_LENGTHS_MM = [1, 2, 5, 10, 20, 50, 100];
const BAR_PIXELS = 110;
const WIDE_PAGE = 2000;

/**
 * @param {CanvasRenderingContext2D} context
 * @param {import("./slice_view.js").SliceView} view
 */
export function drawLabels(context, { canvas, plane, scene, slice, title, pixelsPerMm }) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  const size = window.innerWidth < WIDE_PAGE ? 12 : 14;
  const write = (text, x, y) => {
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  };
  context.strokeStyle = "#000c";
  context.lineWidth = 3;
  context.lineJoin = "round";
  context.textBaseline = "middle";
  if (scene.named) {
    context.font = `600 ${size}px system-ui, sans-serif`;
    context.fillStyle = "#c6ced8";
    const places = [
      ["left", 8, height / 2],
      ["right", width - 8, height / 2],
      ["center", width / 2, 12],
      ["center", width / 2, height - 12],
    ];
    places.forEach(([align, x, y], side) => {
      context.textAlign = align;
      write(plane.sides[side], x, y);
    });
  }
  context.font = `${size}px system-ui, sans-serif`;
  context.fillStyle = "#b3bcc8";
  context.textAlign = "left";
  const name = (plane.name[0].toUpperCase() + plane.name.slice(1)).slice(0, width < 240 ? 3 : undefined);
  const lines = [title, scene.isFlat ? "" : `${name}  ${slice + 1} / ${plane.depth}`].filter(Boolean);
  // In a narrow view below the side of the patient, which is in the middle.
  const longest = Math.max(...lines.map((line) => context.measureText(line).width));
  const top = scene.named && 10 + longest > width / 2 - size ? 34 : 16;
  lines.forEach((line, i) => write(line, 10, top + (size + 5) * i));
  if (scene.named && width >= 320) {
    const length = BAR_LENGTHS_MM.findLast((mm) => mm * pixelsPerMm < BAR_PIXELS) ?? BAR_LENGTHS_MM[0];
    context.strokeRect(10, height - 14, length * pixelsPerMm, 2);
    context.fillRect(10, height - 14, length * pixelsPerMm, 2);
    write(`${length} mm`, 16 + length * pixelsPerMm, height - 13);
  }
}

/** Text over a slice: sides of the patient, plane and slice number, and a scale bar. */

const BAR_LENGTHS_MM = [1, 2, 5, 10, 20, 50, 100];
const BAR_PIXELS = 110;

/**
 * @param {CanvasRenderingContext2D} context
 * @param {import("./slice_view.js").SliceView} view
 */
export function drawLabels(context, { canvas, plane, scene, slice, title, pixelsPerMm }) {
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  context.shadowColor = "#000";
  context.shadowBlur = 4;
  context.textBaseline = "middle";
  if (scene.named) {
    context.font = "600 12px system-ui, sans-serif";
    context.fillStyle = "#c6ced8";
    const places = [
      ["left", 8, height / 2],
      ["right", width - 8, height / 2],
      ["center", width / 2, 12],
      ["center", width / 2, height - 12],
    ];
    places.forEach(([align, x, y], side) => {
      context.textAlign = align;
      context.fillText(plane.sides[side], x, y);
    });
  }
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = "#98a2b0";
  context.textAlign = "left";
  const name = (plane.name[0].toUpperCase() + plane.name.slice(1)).slice(0, width < 240 ? 3 : undefined);
  const lines = [title, scene.isFlat ? "" : `${name}  ${slice + 1} / ${plane.depth}`].filter(Boolean);
  lines.forEach((line, i) => context.fillText(line, 10, 16 + 17 * i));
  if (scene.named && width >= 320) {
    const length = BAR_LENGTHS_MM.findLast((mm) => mm * pixelsPerMm < BAR_PIXELS) ?? BAR_LENGTHS_MM[0];
    context.fillRect(10, height - 14, length * pixelsPerMm, 2);
    context.fillText(`${length} mm`, 16 + length * pixelsPerMm, height - 13);
  }
  context.shadowBlur = 0;
}

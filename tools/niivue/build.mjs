/**
 * Bundle NiiVue for the review page: node build.mjs [output folder]
 *
 * Writes niivue.js, and niivue.LICENSE.txt with the licences of all bundled packages. The lockfile makes the output
 * reproducible to the byte.
 */

import { build } from "esbuild";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const output = process.argv[2] ?? here("../../nnunetv2_deferral/review/static/vendor");

const { metafile } = await build({
  stdin: { contents: 'export { Niivue, NVImage, SLICE_TYPE } from "@niivue/niivue";', resolveDir: here(".") },
  alias: { zarrita: here("zarrita_stub.js") },
  outfile: join(output, "niivue.js"),
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
});

/** The licence of a package; NiiVue's package contains none, so that of its repository is stored here. */
function licenceOf(name) {
  if (name === "@niivue/niivue") return readFileSync(here("niivue_license.txt"), "utf8");
  const folder = here(join("node_modules", name));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  return readFileSync(join(folder, file), "utf8");
}

const inputs = Object.values(metafile.outputs).flatMap((made) => Object.keys(made.inputs));
const names = inputs.map((path) => path.match(/node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]).filter(Boolean);
const parts = [...new Set(names)].sort().map((name) => {
  const { version } = JSON.parse(readFileSync(here(join("node_modules", name, "package.json")), "utf8"));
  return `${name} ${version}\n\n${licenceOf(name).trim()}\n`;
});
writeFileSync(join(output, "niivue.LICENSE.txt"), parts.join(`\n${"-".repeat(80)}\n\n`));

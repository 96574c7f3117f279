// Sets formulas for the book's build: a page's formulas in, their HTML and style out,
// a line of JSON each. Text that is no TeX gives an error with its formula.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(import.meta.url);
const extensions = ["ams", "boldsymbol", "newcommand"];
const MathJax = await require("mathjax").init({
  loader: {
    load: [
      "input/tex-base",
      ...extensions.map((name) => `[tex]/${name}`),
      "output/chtml",
      "a11y/assistive-mml", // the MathML that a screen reader reads
    ],
  },
  tex: {
    packages: ["base", ...extensions],
    formatError: (_, error) => {
      throw error;
    },
  },
  chtml: { fontURL: "FONTS" },
});
const { adaptor, output } = MathJax.startup;

function typeset({ tex, display }) {
  try {
    return { html: adaptor.outerHTML(MathJax.tex2chtml(tex, { display })) };
  } catch (error) {
    return { error: `${error.message}: ${tex}` };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  output.clearCache(); // a page's style names only what the page shows
  const formulas = JSON.parse(line).map(typeset);
  const style = adaptor.textContent(MathJax.chtmlStylesheet());
  process.stdout.write(`${JSON.stringify({ formulas, style })}\n`);
}

// Opens a page in a real browser and says what a person would meet, as JSON.
//
//   node check.mjs PAGE.html [FOLDER]
//
// Screenshots are saved to FOLDER. The browser is the one that PURIFY_AUDIT_CHROMIUM names, the
// modules are beside this file or in the folder that PURIFY_AUDIT_NODE_MODULES names.
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const modules = resolve(process.env.PURIFY_AUDIT_NODE_MODULES ?? join(here, "node_modules"));
const require = createRequire(join(modules, "anchor.js"));
const puppeteer = await import(pathToFileURL(require.resolve("puppeteer-core")).href);
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const [page_file, folder] = process.argv.slice(2);
const url = pathToFileURL(resolve(page_file)).href;
if (folder && !existsSync(folder)) mkdirSync(folder, { recursive: true });

const VIEWS = [
  { name: "phone-light", width: 360, height: 740, scheme: "light" },
  { name: "phone-dark", width: 360, height: 740, scheme: "dark" },
  { name: "desk-light", width: 1280, height: 900, scheme: "light" },
  { name: "desk-dark", width: 1280, height: 900, scheme: "dark" },
];

// What the page is in the browser's eyes, measured inside it.
function measure() {
  const root = document.documentElement;
  const letters = [...document.querySelectorAll("svg text")].map((text) => {
    const svg = text.ownerSVGElement;
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    return scale * parseFloat(getComputedStyle(text).fontSize);
  });
  const overlaps = [...document.querySelectorAll("svg.plot")].flatMap((svg) => {
    const boxes = [...svg.querySelectorAll("text")].map((t) => [t, t.getBoundingClientRect()]);
    const touching = ([s, a], [t, b]) =>
      s !== t && a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 &&
      b.top < a.bottom - 3;
    return boxes.flatMap((a, n) =>
      boxes.slice(n + 1).filter((b) => touching(a, b))
        .map((b) => `${a[0].textContent} | ${b[0].textContent}`));
  });
  return {
    scroll_width: root.scrollWidth,
    client_width: root.clientWidth,
    smallest_text: letters.length ? Math.min(...letters) : null,
    overlapping_texts: overlaps,
    unloaded_images: [...document.images].filter((i) => !(i.complete && i.naturalWidth)).length,
    background: getComputedStyle(document.body).backgroundColor,
  };
}

// Every element that the Tab key reaches, and how many of them show that they have the focus.
async function tabs(page) {
  const reached = [];
  for (let n = 0; n < 400; n += 1) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => {
      const e = document.activeElement;
      if (!e || e === document.body) return null;
      const css = getComputedStyle(e);
      const visible = css.outlineStyle !== "none" && parseFloat(css.outlineWidth) > 0;
      return { name: `${e.tagName.toLowerCase()}.${e.className}`, visible };
    });
    if (!at) break;
    reached.push(at);
  }
  return reached;
}

const browser = await puppeteer.launch({
  executablePath: process.env.PURIFY_AUDIT_CHROMIUM ?? "/usr/bin/chromium",
  headless: true,
  args: ["--no-sandbox", "--disable-gpu", "--force-color-profile=srgb"],
});
const result = { console: [], requests: [], views: {}, print: {}, tabs: [] };
try {
  const page = await browser.newPage();
  page.on("console", (m) => {
    if (["error", "warn"].includes(m.type())) result.console.push(m.text());
  });
  page.on("pageerror", (error) => result.console.push(String(error)));
  page.on("request", (r) => {
    if (r.url() !== url && !r.url().startsWith("data:")) result.requests.push(r.url());
  });
  for (const view of VIEWS) {
    await page.setViewport({ width: view.width, height: view.height });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: view.scheme }]);
    await page.goto(url, { waitUntil: "load" });
    await page.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = true)));
    const measured = await page.evaluate(measure);
    await page.evaluate(axe);
    const found = await page.evaluate(() => globalThis.axe.run(document));
    measured.violations = found.violations.map((v) => ({
      id: v.id,
      impact: v.impact,
      nodes: v.nodes.slice(0, 5).map((n) => `${n.target.join(" ")}: ${n.failureSummary}`),
    }));
    measured.passed = found.passes.length;
    result.views[view.name] = measured;
    if (folder) await page.screenshot({ path: join(folder, `${view.name}.png`), fullPage: true });
  }
  await page.goto(url, { waitUntil: "load" });
  result.tabs = await tabs(page);
  result.regions = await page.evaluate(() =>
    [...document.querySelectorAll(".scroll")].filter((e) => e.checkVisibility()).length);
  await page.emulateMediaType("print");
  result.print = await page.evaluate(() => {
    const shut = (d) => d.offsetHeight === 0 ||
      getComputedStyle(d, "::details-content").contentVisibility !== "visible";
    const details = [...document.querySelectorAll("details")];
    return { details: details.length, hidden: details.filter(shut).length };
  });
  if (folder) await page.pdf({ path: join(folder, "print.pdf"), format: "A4" });
} finally {
  await browser.close();
}
console.log(JSON.stringify(result, null, 1));

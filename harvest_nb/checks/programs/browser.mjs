// Opens a page in Chromium through Playwright: browser.mjs <page file> <screenshot file>; prints JSON.
// The page is served on loopback, as a project's own pages are, and needs no network.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { chromium } from "playwright";

const [page_file, screenshot] = process.argv.slice(2);
const html = readFileSync(page_file);
const server = createServer((_, response) => {
  response.setHeader("content-type", "text/html; charset=utf-8");
  response.end(html);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const options = process.env.HARVEST_CHECK_LAUNCH ? JSON.parse(process.env.HARVEST_CHECK_LAUNCH) : {};
const browser = await chromium.launch(options);
try {
  const page = await browser.newPage({ viewport: { width: 320, height: 200 } });
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.screenshot({ path: screenshot });
  const title = await page.title();
  process.stdout.write(JSON.stringify({ title, version: browser.version(), uid: process.getuid() }));
} finally {
  await browser.close();
  server.close();
}

// The console's pages are whole without this script. It sets the colours, shows local times, draws
// charts, and fetches the page again every EVERY_MS to replace the parts that have changed.
"use strict";
const EVERY_MS = 2000;

// --- colours ---
const THEMES = { auto: "dark", dark: "light", light: "auto" };
const theme = () => localStorage.getItem("tidewheel-theme") ?? "auto";
const setTheme = () => (document.documentElement.dataset.theme = theme());
setTheme();

// --- <tw-time at="microseconds" mode="ago|time">: local time, UTC on hover ---
const ago = (s) =>
  s < 100 ? `${s} s ago` : s < 6000 ? `${Math.round(s / 60)} min ago` : s < 172800
    ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`;
const clock = (when) => when.toLocaleTimeString([], { hour12: false });
const isToday = (when) => when.toDateString() === new Date().toDateString();
const moment = (when) => (isToday(when) ? clock(when) : `${when.toLocaleDateString()} ${clock(when)}`);

class TwTime extends HTMLElement {
  connectedCallback() {
    this.draw();
    if (this.getAttribute("mode") === "ago") this.timer = setInterval(() => this.draw(), 1000);
  }
  disconnectedCallback() {
    clearInterval(this.timer);
  }
  draw() {
    const at = Number(this.getAttribute("at")) / 1000;
    const when = new Date(at);
    if (!at) return void (this.textContent = "-");
    this.title = when.toISOString().replace("T", " ").replace(/\.\d+Z/, " UTC");
    if (this.getAttribute("mode") === "ago") {
      this.textContent = ago(Math.max(0, Math.round((Date.now() - at) / 1000)));
    } else {
      this.textContent = moment(when);
    }
  }
}
customElements.define("tw-time", TwTime);

// --- <tw-chart data="...">: lines over time, or lines and stacked bars over named places ---
const HEIGHT = 190, LEFT = 46, TOP = 10, BOTTOM = 22;
const MINUTE = 60000, DAY = 1440 * MINUTE, STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440].map((m) => m * MINUTE);
const DASHES = ["", "7 4", "2 3"];

function make(name, attributes, parent, text) {
  const svg = ["svg", "g", "path", "line", "rect", "text", "circle"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

function niceTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((n) => n * power >= raw) * power;
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, n) => (first + n) * step);
}

function number(value, ticks, least = 0) {
  const step = ticks?.length > 1 ? ticks[1] - ticks[0] : 0;
  const digits = step ? Math.max(least, Math.ceil(-Math.log10(step) - 1e-9)) : 2;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: step ? digits : 3 });
}

class TwChart extends HTMLElement {
  connectedCallback() {
    this.chart = JSON.parse(this.getAttribute("data"));
    this.seen = new ResizeObserver(() => this.draw());
    this.seen.observe(this);
  }
  disconnectedCallback() {
    this.seen.disconnect();
  }
  draw() {
    const { chart } = this, width = this.clientWidth;
    if (!width || width === this.drawn) return;
    this.drawn = width;
    this.replaceChildren();
    const lines = chart.series.filter((s) => s.kind === "line"), bars = chart.series.filter((s) => s.kind === "bar");
    this.right = bars.length ? 34 : 14;
    this.legend(chart.series);
    const svg = make("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` }, this);
    const x = this.across(svg, width), y = this.up(svg, width, lines);
    this.bars(svg, width, bars, x);
    lines.forEach((line, n) => {
      let pen = "M", path = "";
      for (const [at, value] of line.points) {
        if (value === null) pen = "M";
        else [path, pen] = [`${path}${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`, "L"];
      }
      make("path", { d: path, stroke: line.colour, "stroke-dasharray": DASHES[n % 3], class: "line" }, svg);
      if (line.points.length < 12)
        for (const [at, value] of line.points)
          if (value !== null) make("circle", { cx: x(at), cy: y(value), r: 3, fill: line.colour }, svg);
    });
    this.tip(svg, width, x);
  }
  legend(series) {
    const box = make("div", { class: "legend row-of small" }, this);
    series.forEach((each, n) => {
      const key = make("span", { class: "key" }, box);
      const svg = make("svg", { width: 22, height: 10 }, key);
      if (each.kind === "bar") make("rect", { x: 5, width: 10, height: 10, fill: each.colour }, svg);
      else make("path", { d: "M0 5L22 5", stroke: each.colour, "stroke-dasharray": DASHES[n % 3], class: "line" }, svg);
      make("span", {}, key, each.name);
    });
  }
  across(svg, width) {
    const { names, series } = this.chart;
    const all = series.flatMap((s) => s.points.map(([at]) => at));
    let [low, high] = names ? [-0.5, names.length - 0.5] : [Math.min(...all), Math.max(...all)];
    if (high === low) [low, high] = [low - MINUTE, high + MINUTE];
    const x = (at) => LEFT + ((at - low) / (high - low)) * (width - LEFT - this.right);
    const most = Math.max(2, Math.floor((width - LEFT - this.right) / (names ? 76 : 62)));
    let ticks;
    if (names) {
      const step = Math.ceil(names.length / most);
      ticks = names.map((text, at) => [at, text]).filter(([at]) => at % step === 0);
    } else {
      const step = STEPS.find((s) => (high - low) / s <= most) ?? Math.ceil((high - low) / most / DAY) * DAY;
      const shift = (at) => new Date(at).getTimezoneOffset() * MINUTE; // another one after a change of the clocks
      ticks = [];
      for (let local = Math.ceil((low - shift(low)) / step) * step; ; local += step) {
        const at = local + shift(local + shift(low)), when = new Date(local);
        if (at > high) break;
        ticks.push([at, local % DAY === 0 && high - low > DAY
          ? when.toLocaleDateString([], { day: "numeric", month: "short", timeZone: "UTC" })
          : when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false, timeZone: "UTC" })]);
      }
    }
    for (const [at, text] of ticks) {
      const label = make("text", { y: HEIGHT - 5, "text-anchor": "middle" }, svg, text);
      const half = label.getComputedTextLength() / 2; // a label at an end of the axis stays inside
      label.setAttribute("x", Math.max(half, Math.min(x(at), width - half)));
    }
    return x;
  }
  up(svg, width, lines) {
    const { chart } = this, values = lines.flatMap((s) => s.points.map(([, v]) => v)).filter((v) => v !== null);
    let low = chart.min ?? Math.min(...values, 1), high = chart.max ?? Math.max(...values, low);
    if (!values.length) [low, high] = [chart.min ?? 0, chart.max ?? 1];
    if (high === low) high = low + 1;
    let ticks;
    if (chart.log) {
      const first = Math.round(Math.log10(low)), last = Math.round(Math.log10(high));
      ticks = Array.from({ length: last - first + 1 }, (_, n) => 10 ** (first + n));
    } else {
      ticks = niceTicks(low, high, 4);
      [low, high] = [chart.min ?? ticks[0], chart.max ?? ticks.at(-1)];
      ticks = ticks.filter((t) => t >= low - 1e-9 && t <= high + 1e-9);
    }
    const scale = chart.log ? Math.log10 : (v) => v;
    const y = (v) => TOP + (1 - (scale(v) - scale(low)) / (scale(high) - scale(low))) * (HEIGHT - TOP - BOTTOM);
    for (const tick of ticks) {
      make("line", { x1: LEFT, x2: width - this.right, y1: y(tick), y2: y(tick), class: "grid" }, svg);
      const text = chart.log ? String(Number(tick.toPrecision(1))) : number(tick, ticks, chart.max === 1 ? 2 : 0);
      make("text", { x: LEFT - 8, y: y(tick) + 4, "text-anchor": "end" }, svg, text);
    }
    return y;
  }
  bars(svg, width, bars, x) {
    const sums = (bars[0]?.points ?? []).map((_, n) => bars.reduce((sum, s) => sum + s.points[n][1], 0));
    const most = Math.max(1, ...sums), unit = (HEIGHT - TOP - BOTTOM) / 2 / most; // below the line
    const wide = Math.min(26, (x(1) - x(0)) * 0.7);
    sums.forEach((_, n) => {
      let top = HEIGHT - BOTTOM;
      for (const { points, colour } of bars) {
        const height = points[n][1] * unit;
        make("rect", { x: x(n) - wide / 2, y: (top -= height), width: wide, height, fill: colour }, svg);
      }
    });
    if (!bars.length) return;
    for (const count of [0, most])
      make("text", { x: width - this.right + 6, y: HEIGHT - BOTTOM - count * unit + 4 }, svg, String(count));
  }
  tip(svg, width, x) {
    const line = make("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" }, svg);
    const box = make("div", { class: "tip", hidden: "" }, this);
    const places = [...new Set(this.chart.series.flatMap((s) => s.points.map(([at]) => at)))];
    svg.addEventListener("pointermove", ({ offsetX }) => {
      const at = places.reduce((a, b) => (Math.abs(x(b) - offsetX) < Math.abs(x(a) - offsetX) ? b : a));
      const values = this.chart.series.map((s) => [s.name, s.points.find(([p]) => p === at)?.[1]]);
      const known = values.filter(([, value]) => value !== null && value !== undefined);
      box.replaceChildren();
      make("b", {}, box, this.chart.names?.[at] ?? moment(new Date(at)));
      for (const [name, value] of known) make("div", {}, box, `${name} ${number(value)}`);
      for (const name of ["x1", "x2"]) line.setAttribute(name, x(at));
      line.setAttribute("visibility", "visible");
      box.hidden = false;
      box.style.left = `${x(at) < width / 2 ? x(at) + 12 : x(at) - box.offsetWidth - 12}px`;
    });
    svg.addEventListener("pointerleave", () => {
      line.setAttribute("visibility", "hidden");
      box.hidden = true;
    });
  }
}
customElements.define("tw-chart", TwChart);

// --- live: parts with an id and data-live are replaced where the server's HTML has changed ---
const shown = new Map();
let since = new Date();

function replace(next) {
  const parts = [...next.querySelectorAll("[data-live]")];
  const ids = (page) => [...page.querySelectorAll("[data-live]")].map((part) => part.id).join();
  if (ids(next) !== ids(document)) {
    shown.clear();
    const typing = document.activeElement?.matches("input");
    if (!typing) return document.querySelector("main").replaceWith(next.querySelector("main"));
  }
  for (const part of parts) {
    const now = document.getElementById(part.id), text = part.outerHTML;
    if (!now || shown.get(part.id) === text || now.querySelector("tw-chart:hover")) continue;
    const focused = now.contains(document.activeElement) && document.activeElement.getAttribute("href");
    shown.set(part.id, text);
    now.replaceWith(part);
    if (focused) part.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
  }
}

async function refresh() {
  const away = document.getElementById("away"), address = location.href;
  try {
    const answer = await fetch(address);
    if (!answer.headers.get("content-type")?.startsWith("text/html")) return;
    const next = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (address !== location.href) return;
    since = new Date();
    replace(next);
  } catch {
    shown.delete("away");
    away.hidden = false;
    away.firstElementChild.textContent =
      `This console does not answer. Everything here is of ${clock(since)}. Reconnecting automatically.`;
  }
}

addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  const name = () => (button.textContent = `Colours: ${theme()}`);
  button.hidden = false;
  name();
  button.addEventListener("click", () => {
    localStorage.setItem("tidewheel-theme", THEMES[theme()] ?? "auto");
    setTheme();
    name();
  });
  const field = document.querySelector("input[type=search]");
  let typed;
  field?.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => {
      history.replaceState(null, "", `?${new URLSearchParams(new FormData(field.form))}`);
      refresh();
    }, 250);
  });
  field?.form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || !field || document.activeElement === field) return;
    event.preventDefault();
    field.focus();
  });
  setInterval(() => document.hidden || refresh(), EVERY_MS);
});

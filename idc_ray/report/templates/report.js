"use strict";
(() => {
  const outputs = JSON.parse(document.getElementById("report-data").textContent);
  const PAGE = 50;
  const LINK = "#image=";  // an address that ends so opens this image

  // Elements: text is always text, never markup, since names of files may be anything.
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name === "text") made.textContent = value;
      else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  const number = (value, digits = 3) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(digits))));

  function bytes(count) {
    for (const unit of ["B", "kB", "MB", "GB"]) {
      if (count < 999.5) return `${number(count)} ${unit}`;
      count /= 1000;
    }
    return `${number(count)} TB`;
  }

  // Theme

  const root = document.documentElement;
  const themeButton = document.getElementById("theme");
  function setTheme(dark) {
    root.classList.toggle("dark", dark);
    themeButton.setAttribute("aria-pressed", String(dark));
  }
  const preferred = matchMedia("(prefers-color-scheme: dark)");
  setTheme(preferred.matches);
  preferred.addEventListener("change", (event) => setTheme(event.matches));
  themeButton.addEventListener("click", () => setTheme(!root.classList.contains("dark")));

  // Data and commands

  document.getElementById("save").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([JSON.stringify(outputs, null, 1)], { type: "application/json" }));
    element("a", { href: url, download: "report.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", () => {
      const range = document.createRange();
      range.selectNodeContents(button.previousElementSibling);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected"; // works from file://, where the clipboard API does not
    });
  }

  // Tables: a button in each heading sorts the rows

  function columnsOf(table) {
    const columns = new Map();
    const taken = [...table.tHead.rows].map(() => []);
    [...table.tHead.rows].forEach((row, y) => {
      for (const cell of row.cells) {
        let x = 0;
        while (taken[y][x]) x += 1;
        for (let dy = 0; dy < cell.rowSpan; dy += 1) for (let dx = 0; dx < cell.colSpan; dx += 1) taken[y + dy][x + dx] = true;
        if (cell.scope === "col" && !cell.querySelector(".hidden")) columns.set(cell, x);
      }
    });
    return columns;
  }

  function sortKey(row, column) {
    const cell = row.cells[column];
    const text = (cell.dataset.value ?? cell.textContent).trim().replace("∞", "Infinity");
    const value = parseFloat(text.replaceAll(",", ""));
    return text === "" || text === "–" ? null : Number.isNaN(value) ? text : value;
  }

  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  for (const table of document.querySelectorAll("table.sortable")) {
    const columns = columnsOf(table);
    for (const [heading, column] of columns) {
      const button = element("button", { type: "button", class: "sorter" }, ...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const rows = [...table.tBodies[0].rows].map((row) => [sortKey(row, column), row]);
        const before = heading.getAttribute("aria-sort");
        const descending = before ? before === "ascending" : rows.some(([key]) => typeof key === "number");
        for (const other of columns.keys()) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
        rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : compare(a, b) * (descending ? -1 : 1)));
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    }
  }

  // Charts: SVG with the page's colours, which follow the theme, and are those of paper in print

  const text = { labelColor: "var(--quiet)", titleColor: "var(--ink)", titleFontWeight: 500, labelFontSize: 12, titleFontSize: 12 };
  const chartStyle = {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: null },
    axis: { ...text, gridColor: "var(--line)", domainColor: "var(--line)", tickColor: "var(--line)" },
    legend: { ...text, symbolLimit: 40, labelLimit: 320 },
    header: text,
    text: { color: "var(--ink)", fontSize: 12 },
    rule: { color: "var(--quiet)" },
    mark: { color: "var(--c0)" },
    range: {
      symbol: ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right"],
      category: [0, 1, 2, 3, 4, 5, 6, 7].map((index) => `var(--c${index})`),
    },
  };

  function setColumns(node, columns) {
    if (node.legend?.columns) node.legend.columns = columns;
    for (const child of Object.values(node)) if (child && typeof child === "object" && !Array.isArray(child.rows)) setColumns(child, columns);
  }

  async function drawChart(plot) {
    const output = outputs[plot.closest("[data-output]").dataset.output];
    const chart = output.charts[plot.dataset.chart];
    const spec = { ...structuredClone(chart.spec), data: { name: "rows" }, datasets: { rows: chart.rows }, autosize: { type: "fit-x", contains: "padding" } };
    setColumns(spec, Math.max(1, Math.floor(plot.clientWidth / 270)));
    const embedded = await window.vegaEmbed(plot, spec, {
      mode: "vega-lite", ast: true, actions: false, config: chartStyle, renderer: "svg", bind: plot.nextElementSibling,
    });
    embedded.view.addEventListener("click", (event, item) => {
      if (item?.datum?.image) plot.dispatchEvent(new CustomEvent("choose", { bubbles: true, detail: item.datum.image }));
    });
  }

  async function drawCharts() {
    for (const plot of document.querySelectorAll(".plot")) {
      try {
        await drawChart(plot);
      } catch (error) {
        plot.textContent = `This chart cannot be drawn: ${error.message}`;
      }
      await new Promise((resolve) => setTimeout(resolve)); // the page answers between two charts
    }
  }

  // Two pictures of one size over each other: a slider moves the border between them, Flicker shows them in turn.

  let flickering = null;
  function comparer(left, right, side, zoom, at, moved) {
    const plain = `${left.name} | ${right.name}, ${side} × ${side} pixels`;
    const caption = element("figcaption", { text: plain });
    const stack = element("div", { class: "stack", style: `width: ${side * zoom}px; height: ${side * zoom}px; --at: ${at}%` },
      element("img", { src: left.picture, class: "pixels", alt: left.name }), element("img", { src: right.picture, class: "pixels", alt: right.name }));
    const figure = element("figure", {}, caption, element("div", { class: "window", tabindex: 0 }, stack));
    const slider = element("input", { type: "range", min: 0, max: 100, step: 1, value: at, "aria-label": `Border between ${left.name} on the left and ${right.name} on the right` });
    slider.addEventListener("input", () => { stack.style.setProperty("--at", `${slider.value}%`); moved(slider.value); });
    const flicker = element("button", { type: "button", "aria-pressed": "false", text: "Flicker" });
    clearInterval(flickering);
    flicker.addEventListener("click", () => {
      clearInterval(flickering);
      const on = stack.classList.toggle("flip");
      flicker.setAttribute("aria-pressed", String(on));
      stack.classList.remove("one");
      caption.textContent = on ? right.name : plain;
      if (on) flickering = setInterval(() => { caption.textContent = stack.classList.toggle("one") ? left.name : right.name; }, 700);
    });
    return { figure, controls: [flicker, element("label", { class: "grow slider" }, slider)] };
  }

  // Crops of a comparison

  function showCrop(crop, zoom) {
    const viewer = element("div", { class: "viewers" });
    const controls = element("div", { class: "controls" });
    const chosen = { left: Math.min(2, crop.pictures.length - 1), right: crop.pictures.length - 1 };
    const text = (each) => each.name + (each.psnr === null ? "" : `, ${each.psnr.toFixed(2)} dB`);
    const selects = ["left", "right"].map((place) => {
      const select = element("select", { "aria-label": place === "left" ? "Picture on the left" : "Picture on the right" },
        ...crop.pictures.map((each, index) => element("option", { value: index, selected: index === chosen[place], text: text(each) })));
      select.addEventListener("input", () => { chosen[place] = Number(select.value); draw(); });
      return select;
    });
    function draw() {
      const pair = comparer(crop.pictures[chosen.left], crop.pictures[chosen.right], crop.side, zoom, 50, () => {});
      viewer.replaceChildren(pair.figure);
      controls.replaceChildren(...selects, ...pair.controls);
    }
    draw();
    const all = element("div", { class: "all" }, ...crop.pictures.map((each) => element("figure", {},
      element("img", { src: each.picture, class: "pixels", width: 144, height: 144, alt: `Crop of ${crop.image}: ${each.name}` }),
      element("figcaption", { text: text(each) }))));
    return element("div", { class: "detail crop" }, element("h3", {}, element("bdi", { text: `${crop.set}: ${crop.image}` })), controls, viewer, all);
  }

  // Images

  class Browser {
    constructor(article, output) {
      this.find = (selector) => article.querySelector(selector);
      this.output = output;
      const table = output.images;
      this.rows = table.source.map((source, index) => ({
        index, source, id: table.image_id[index], picture: output.pictures[table.image_id[index]] ?? null,
        tiles: table.tiles[index], candidates: table.candidates[index], before: table.before[index], after: table.after[index],
        change: table.before[index] ? table.after[index] / table.before[index] : null, kept: table.kept[index],
        seconds: table.seconds[index], bytes: table.bytes[index], height: table.height[index], width: table.width[index],
      }));
      this.page = 0;
      this.chosen = null;
      this.zoom = 0;
      this.at = 50;
      const only = this.find(".only");
      if (!this.rows.some((row) => row.picture)) { only.checked = false; only.disabled = true; }
      for (const selector of [".search", ".sort", ".only"]) this.find(selector).addEventListener("input", () => { this.page = 0; this.list(); });
      this.find(".previous").addEventListener("click", () => { this.page -= 1; this.list(); });
      this.find(".next").addEventListener("click", () => { this.page += 1; this.list(); });
      this.find(".rows").addEventListener("keydown", (event) => this.step(event));
      article.addEventListener("choose", (event) => this.jump(event.detail));
      this.list();
      if (this.shown.length) this.choose(this.shown[0]);
      if (location.hash.startsWith(LINK)) this.jump(decodeURIComponent(location.hash.slice(LINK.length)));
    }

    list() {
      const words = this.find(".search").value.toLowerCase().split(/\s+/).filter(Boolean);
      const [key, direction] = this.find(".sort").value.split(":");
      const only = this.find(".only").checked;
      const order = (row) => row[key] ?? (direction < 0 ? -Infinity : Infinity);
      this.shown = this.rows
        .filter((row) => (!only || row.picture) && words.every((word) => row.source.toLowerCase().includes(word)))
        .sort((a, b) => direction * (typeof order(a) === "string" ? order(a).localeCompare(order(b)) : order(a) - order(b)) || a.index - b.index);
      const pages = Math.max(1, Math.ceil(this.shown.length / PAGE));
      this.page = Math.min(Math.max(this.page, 0), pages - 1);
      const part = this.shown.slice(this.page * PAGE, (this.page + 1) * PAGE);
      this.find(".count").textContent = `${this.shown.length.toLocaleString("en")} of ${this.rows.length.toLocaleString("en")} images`;
      this.find(".page").textContent = `page ${this.page + 1} of ${pages}`;
      this.find(".previous").disabled = this.page === 0;
      this.find(".next").disabled = this.page === pages - 1;
      this.find(".rows").replaceChildren(...part.map((row) => this.item(row)));
    }

    item(row) {
      const src = row.picture ? row.picture.source ?? row.picture.tiles[0].lr : null;
      const facts = [`${row.tiles} ${row.tiles === 1 ? "tile" : "tiles"}`];
      if (row.change !== null) facts.push(`loss ${number(row.before)} → ${number(row.after)} (× ${row.change.toFixed(2)})`);
      const button = element("button", { type: "button", "aria-current": this.chosen === row ? "true" : null },
        src ? element("img", { src, alt: "", class: "thumb", width: 64, height: 48, loading: "lazy" }) : element("span", { class: "thumb" }),
        element("span", {}, element("bdi", { class: "name", text: row.source }), element("span", { class: "meta", text: facts.join(" · ") })));
      button.addEventListener("click", () => this.choose(row, true));
      button.row = row;
      return element("li", {}, button);
    }

    step(event) {
      const moves = { ArrowDown: 1, ArrowUp: -1 };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const buttons = [...this.find(".rows").querySelectorAll("button")];
      const next = buttons[buttons.indexOf(document.activeElement) + moves[event.key]];
      if (next) { next.focus(); this.choose(next.row, true); }
    }

    jump(source) {
      const row = this.rows.find((each) => each.source === source);
      if (!row) return;
      this.choose(row);
      this.find(".detail").scrollIntoView({ block: "center" });
      this.find(".detail").focus({ preventScroll: true });
    }

    choose(row, linked = false) {
      if (linked) history.replaceState(null, "", LINK + encodeURIComponent(row.source));
      this.chosen = row;
      this.tile = 0;
      for (const button of this.find(".rows").querySelectorAll("button")) {
        if (button.row === row) button.setAttribute("aria-current", "true");
        else button.removeAttribute("aria-current");
      }
      const heading = element("h3", {}, element("bdi", { text: row.source }));
      const parts = row.picture ? this.pictures(row) : [element("p", { class: "quiet", text: row.tiles
        ? "This report holds the numbers of this image only. To see its pictures, make a report with --include NAME."
        : "This image got no tile." })];
      this.find(".detail").replaceChildren(heading, ...parts, this.numbers(row));
      if (row.picture) this.show();
    }

    pictures(row) {
      const picture = row.picture;
      const source = picture.source
        ? element("div", { class: "source", style: `width: ${Math.round(Math.min(640, 440 * row.width / row.height))}px` }, element("img", {
          src: picture.source, width: row.width, height: row.height,
          alt: "The source image at LR size, with boxes where its tiles were taken" }), this.overlay(row))
        : element("p", { class: "quiet", text: `No source image: ${picture.missing || "it was not read"}.` });
      this.tileButtons = picture.tiles.map((tile, index) => {
        const button = element("button", { type: "button", style: `--tile: var(--c${index % 8})` },
          element("img", { src: tile.lr, alt: `LR tile ${index + 1}`, class: "pixels", width: 64, height: 64 }),
          element("span", {}, element("i", { class: "swatch" }), String(index + 1)));
        button.addEventListener("click", () => { this.tile = index; this.show(); });
        return button;
      });
      this.viewers = element("div");
      return [source, element("div", { class: "tiles", role: "group", "aria-label": "Tiles" }, ...this.tileButtons), this.viewers];
    }

    overlay(row) {
      const svg = (tag, attributes) => {
        const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
        for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
        return made;
      };
      const drawing = svg("svg", { viewBox: `0 0 ${row.width} ${row.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
      row.picture.tiles.forEach((tile, index) => tile.boxes.forEach((box) => {
        const place = { x: box.left, y: box.top, width: box.width, height: box.height };
        const group = svg("g", { "data-tile": index });
        group.append(svg("rect", { ...place, class: "halo" }), svg("rect", { ...place, class: box.kind, style: `stroke: var(--c${index % 8})` }));
        drawing.append(group);
      }));
      return drawing;
    }

    show() {
      const row = this.chosen;
      const tile = row.picture.tiles[this.tile];
      this.tileButtons.forEach((button, index) => button.setAttribute("aria-pressed", String(index === this.tile)));
      for (const group of this.find(".detail").querySelectorAll("[data-tile]")) group.classList.toggle("off", Number(group.dataset.tile) !== this.tile);
      const settings = this.output.settings;
      const side = settings.tile_size * settings.scale;
      const fitting = Math.max(1, Math.floor(288 / side));
      const zoom = this.zoom || fitting;
      const size = `width: ${side * zoom}px; height: ${side * zoom}px`;
      const lr = element("figure", {}, element("figcaption", { text: `LR tile ${this.tile + 1}, ${settings.tile_size} × ${settings.tile_size} pixels` }),
        element("div", { class: "window", tabindex: 0 }, element("div", { class: "stack", style: size },
          element("img", { src: tile.lr, class: "pixels", alt: `LR tile ${this.tile + 1}` }))));
      lr.querySelector(".stack").classList.add("flip");
      const label = tile.labels === "real" ? "real HR" : "HR by the teacher";
      const pair = tile.hr === null ? null : comparer(
        { name: "bicubic", picture: tile.bicubic }, { name: label, picture: tile.hr }, side, zoom, this.at, (at) => { this.at = at; });
      const zooms = element("select", { "aria-label": "Zoom" }, ...[1, 2, 3, 4, 6, 8].map((factor) =>
        element("option", { value: factor, selected: factor === zoom, text: `${factor} ×` })));
      zooms.addEventListener("input", () => { this.zoom = Number(zooms.value); this.show(); this.viewers.querySelector("select").focus(); });
      const kinds = new Set(tile.boxes.map((box) => box.kind));
      const where = kinds.has("cell")
        ? `${tile.boxes.length} of its cells are from the places in the image that are outlined.`
        : kinds.has("crop") ? "The whole tile is the outlined crop."
          : kinds.has("start") ? "The dashed box is where the tile began; its pixels were changed since."
            : tile.corner ? `It began at row ${tile.corner[0]}, column ${tile.corner[1]} of the LR image.` : "It is from no single place of the image.";
      const against = pair ? ` PSNR of bicubic against the ${label}: ${tile.psnr === null ? "infinite" : `${tile.psnr.toFixed(2)} dB`}.` : "";
      const facts = `${where}${against}${tile.weight === 1 ? "" : ` Weight in training: ${number(tile.weight)}.`}`;
      this.viewers.replaceChildren(
        element("div", { class: "viewers" }, lr, ...(pair ? [pair.figure] : [])),
        element("div", { class: "controls" }, element("label", {}, "Zoom ", zooms), ...(pair ? pair.controls : [])),
        element("p", { class: "quiet", text: facts }));
    }

    numbers(row) {
      const picture = row.picture;
      const facts = [
        ["LR size", `${row.width} × ${row.height} px`],
        ["Tiles", `${row.tiles} of ${row.candidates} that fit in whole`],
        ["File", bytes(row.bytes)],
        ["Time of a worker", `${number(row.seconds)} s`],
      ];
      if (row.before !== null) facts.push(["Held-out loss", `${number(row.before)} → ${number(row.after)}${row.change === null ? "" : ` (× ${row.change.toFixed(2)})`}`]);
      if (row.kept) facts.push(["Matching", "did not better the initial tiles, which were kept"]);
      if (picture) {
        const { before, after } = picture.bandwidths;
        const widths = this.output.settings.rlff.bandwidths;
        if (after.length) facts.push(["Loss by bandwidth", after.map((value, index) => `${widths[index]}: ${number(before[index])} → ${number(value)}`).join(", ")]);
        facts.push(["Time by stage", Object.entries(picture.stages).map(([stage, seconds]) => `${stage} ${number(seconds)} s`).join(", ")]);
        facts.push(["Shown because", picture.why], ["SHA-256", picture.sha256]);
      }
      return element("dl", { class: "facts numbers" }, ...facts.map(([name, value]) =>
        element("div", {}, element("dt", { text: name }), element("dd", { text: value }))));
    }
  }

  for (const article of document.querySelectorAll(".output")) {
    const output = outputs[article.dataset.output];
    if (article.querySelector(".browser")) new Browser(article, output);
    article.querySelector(".crop-list")?.append(...output.crops.map((crop) => showCrop(crop, 4)));
  }
  root.dataset.ready = "true";
  setTimeout(drawCharts); // after the first paint
})();

"use strict";
(() => {
  const LARGEST = 16; // CSS pixels for each pixel of an image
  const LADDER = [1, 2, 3, 4, 6, 8, 12, 16];
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  document.documentElement.classList.add("scripting");

  /* Tables: sorted within each scale, published rows among themselves. */

  function figureOf(row, column, part) {
    const cells = row.querySelectorAll(":scope > .method, :scope > td");
    if (column === 0) return cells[0].textContent.trim().toLowerCase();
    const figures = cells[column].querySelectorAll(".figure");
    const text = figures[Math.min(part, figures.length - 1)].textContent.trim();
    return text === "inf" ? Infinity : parseFloat(text);
  }

  function compare(a, b, sign) {
    if (typeof a === "string") return sign * a.localeCompare(b, undefined, { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // what is not there comes last
    return a === b ? 0 : sign * (a - b);
  }

  function sort(button) {
    const table = button.closest("table");
    const { column, part, first } = button.dataset;
    const second = first === "ascending" ? "descending" : "ascending";
    const order = { undefined: first, [first]: second, [second]: undefined }[button.dataset.order];
    for (const other of table.querySelectorAll(".sort")) {
      delete other.dataset.order;
      other.closest("th").removeAttribute("aria-sort");
    }
    if (order) {
      button.dataset.order = order;
      button.closest("th").setAttribute("aria-sort", order);
    }
    for (const body of table.tBodies) {
      const rows = [...body.rows];
      rows.forEach((row, index) => { row.dataset.place ??= index; });
      const scale = body.querySelector(".scale");
      const sign = order === "descending" ? -1 : 1;
      rows.sort((a, b) => (order ? compare(figureOf(a, +column, +part), figureOf(b, +column, +part), sign) : 0)
        || a.dataset.place - b.dataset.place);
      body.append(...rows);
      rows[0].prepend(scale);
    }
  }

  /* Images: each one is decoded once when it is first needed, and let go when no card in sight shows it. */

  const decoded = new Map();

  function load(key) {
    if (!decoded.has(key)) {
      const image = new Image();
      const data = document.getElementById(key);
      image.src = `data:${data.type};base64,${data.textContent}`;
      decoded.set(key, { users: 0, ready: image.decode().then(() => image) });
    }
    const entry = decoded.get(key);
    entry.users += 1;
    return entry.ready;
  }

  function release(key) {
    const entry = decoded.get(key);
    entry.users -= 1;
    if (entry.users === 0) decoded.delete(key);
  }

  function element(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const ICONS = {
    target: "M8 1v3M8 12v3M1 8h3M12 8h3M8 4.5a3.5 3.5 0 1 0 0 7a3.5 3.5 0 1 0 0-7",
    full: "M2 6V2h4M10 2h4v4M14 10v4h-4M6 14H2v-4",
  };

  function icon(name) {
    const [drawing, path] = ["svg", "path"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
    drawing.setAttribute("viewBox", "0 0 16 16");
    drawing.setAttribute("aria-hidden", "true");
    path.setAttribute("d", ICONS[name]);
    drawing.append(path);
    return drawing;
  }

  class Viewer {
    constructor(card) {
      this.card = card;
      this.view = JSON.parse(card.dataset.view);
      this.shown = { left: this.view.left, right: this.view.right };
      this.images = { left: null, right: null };
      this.held = { left: null, right: null };
      this.split = 0.5;
      this.zoom = null; // fit until chosen
      this.centre = [this.view.width / 2, this.view.height / 2];
      this.pointers = new Map();
      this.visible = false;
      this.build();
    }

    build() {
      const button = (label, content, action) => {
        const made = element("button", { type: "button", "aria-label": label, title: label }, content);
        made.addEventListener("click", action);
        return made;
      };
      this.out = button("Zoom out", "−", () => this.step(-1));
      this.in = button("Zoom in", "+", () => this.step(1));
      this.level = element("output", { "aria-label": "Size" });
      const tools = element("div", { class: "tools" }, this.out, this.level, this.in,
        button("Whole image", "Fit", () => this.reset()));
      if (this.view.region) {
        tools.append(button("Where the networks differ most", icon("target"), () => this.visit()));
      }
      if (document.fullscreenEnabled) tools.append(button("Full screen", icon("full"), () => this.toggleFull()));
      const title = this.card.querySelector("h4");
      this.name = title.firstChild.textContent.trim();
      const bar = element("div", { class: "bar" });
      title.replaceWith(bar);
      bar.append(title, tools);

      this.canvas = element("canvas", { role: "img" });
      this.handle = element("div", { class: "handle", role: "slider", tabindex: "0", "aria-label": `Divider of ${this.name}`,
        "aria-valuemin": "0", "aria-valuemax": "100", "aria-orientation": "horizontal" });
      this.stage = element("div", { class: "stage" }, this.canvas, this.handle);
      const sides = element("div", { class: "sides" }, this.buildSide("left"), this.buildSide("right"));
      this.card.append(this.stage, sides);

      this.stage.addEventListener("pointerdown", (event) => this.press(event));
      this.stage.addEventListener("pointermove", (event) => this.move(event));
      for (const name of ["pointerup", "pointercancel"]) {
        this.stage.addEventListener(name, (event) => this.lift(event));
      }
      this.stage.addEventListener("dblclick", (event) => this.doubled(event));
      this.stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
      this.card.addEventListener("keydown", (event) => this.key(event));
      this.card.addEventListener("fullscreenchange", () => {
        this.card.classList.toggle("full", document.fullscreenElement === this.card);
        this.resize();
      });
      this.describe();
    }

    buildSide(side) {
      const select = element("select", { "aria-label": `${side === "left" ? "Left" : "Right"} image of ${this.name}` });
      this.view.sources.forEach((source, index) => {
        select.append(element("option", { value: index }, index < 9 ? `${index + 1} · ${source.name}` : source.name));
      });
      select.addEventListener("change", () => this.choose(side, +select.value));
      const figures = element("p", {});
      this[side] = { select, figures };
      return element("div", { class: `side ${side}` }, select, figures);
    }

    /* What is shown */

    choose(side, index) {
      if (!this.view.sources[index]) return;
      this.shown[side] = index;
      this.describe();
      if (this.visible) this.fetch(side);
    }

    chooseByName(side, name) {
      this.choose(side, this.view.sources.findIndex((source) => source.name === name));
    }

    swap() {
      const { left, right } = this.shown;
      this.choose("left", right);
      this.choose("right", left);
    }

    describe() {
      for (const side of ["left", "right"]) {
        const source = this.view.sources[this.shown[side]];
        this[side].select.value = this.shown[side];
        const parts = source.figures.flatMap((text, index) => (index ? [" · ", element("span", {}, text)] : [element("span", {}, text)]));
        this[side].figures.replaceChildren(...parts);
      }
      const [left, right] = ["left", "right"].map((side) => this.view.sources[this.shown[side]].name);
      const percent = Math.round(100 * this.split);
      this.canvas.setAttribute("aria-label", `${this.name}: ${left} on the left, ${right} on the right`);
      this.handle.setAttribute("aria-valuenow", percent);
      this.handle.setAttribute("aria-valuetext", `${percent} % ${left}, ${100 - percent} % ${right}`);
      this.handle.style.left = `${100 * this.split}%`;
    }

    async fetch(side) {
      const { key } = this.view.sources[this.shown[side]];
      if (this.held[side] === key) return this.draw();
      const previous = this.held[side];
      this.held[side] = key;
      const loading = load(key);
      if (previous) release(previous);
      try {
        const image = await loading;
        if (this.held[side] !== key) return; // another one was chosen meanwhile
        this.images[side] = image;
        this.draw();
      } catch {
        this.stage.append(element("p", { class: "failed" }, "This browser cannot show the image."));
      }
    }

    show(visible) {
      this.visible = visible;
      if (visible) {
        this.resize();
        this.fetch("left");
        this.fetch("right");
        return;
      }
      for (const side of ["left", "right"]) {
        if (this.held[side]) release(this.held[side]);
        this.held[side] = null;
        this.images[side] = null;
      }
      this.canvas.width = this.canvas.height = 1;
      delete this.canvas.dataset.painted;
    }

    /* Geometry: `zoom` in CSS pixels for each pixel of the image, `centre` in pixels of the image. */

    fit(width, height) {
      const ratio = window.devicePixelRatio || 1;
      const largest = Math.min(width / this.view.width, height / this.view.height, LARGEST);
      const whole = Math.floor(largest * ratio + 1e-6) / ratio; // pixels of one size where they can be
      return whole > 0 ? whole : largest;
    }

    resize() {
      const full = this.card.classList.contains("full");
      const width = this.card.clientWidth;
      if (!width) return;
      const tallest = Math.max(Math.min(0.75 * window.innerHeight, 720), 240);
      this.stage.style.aspectRatio = "auto";
      this.stage.style.height = full ? "" : `${Math.max(Math.ceil(this.fit(width, tallest) * this.view.height), 160)}px`;
      this.fitted = this.fit(this.stage.clientWidth, this.stage.clientHeight);
      if (this.zoom !== null && this.zoom <= this.fitted) this.zoom = null;
      this.draw();
    }

    get size() { return this.zoom ?? this.fitted; }

    magnify(zoom, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
      const before = this.toImage(x, y);
      const size = clamp(zoom, this.fitted, LARGEST);
      this.zoom = size > this.fitted ? size : null;
      this.centre = [before[0] - (x - this.stage.clientWidth / 2) / this.size, before[1] - (y - this.stage.clientHeight / 2) / this.size];
      this.draw();
    }

    toImage(x, y) {
      return [this.centre[0] + (x - this.stage.clientWidth / 2) / this.size, this.centre[1] + (y - this.stage.clientHeight / 2) / this.size];
    }

    step(direction) {
      const size = this.size;
      const next = direction > 0
        ? LADDER.find((level) => level > size * 1.01) ?? LARGEST
        : LADDER.findLast((level) => level < size * 0.99) ?? this.fitted;
      this.magnify(next);
    }

    reset() {
      this.zoom = null;
      this.draw();
    }

    visit() {
      const [x, y, side] = this.view.region;
      this.centre = [x + side / 2, y + side / 2];
      const room = Math.min(this.stage.clientWidth, this.stage.clientHeight) / side;
      this.zoom = clamp(Math.max(Math.floor(room), 2), this.fitted, LARGEST);
      this.draw();
    }

    toggleFull() {
      if (document.fullscreenElement) document.exitFullscreen();
      else this.card.requestFullscreen();
    }

    pan(dx, dy) {
      this.centre = [this.centre[0] - dx / this.size, this.centre[1] - dy / this.size];
      this.draw();
    }

    divide(split) {
      this.split = clamp(split, 0, 1);
      this.describe();
      this.draw();
    }

    /* Drawing */

    draw() {
      if (this.waiting || !this.visible || !this.fitted) return;
      this.waiting = true;
      requestAnimationFrame(() => {
        this.waiting = false;
        if (this.visible) this.paint();
      });
    }

    paint() {
      const { clientWidth, clientHeight } = this.stage;
      const room = [clientWidth, clientHeight];
      const extent = [this.view.width, this.view.height];
      this.centre = this.centre.map((value, axis) => {
        const half = room[axis] / this.size / 2;
        return 2 * half >= extent[axis] ? extent[axis] / 2 : clamp(value, half, extent[axis] - half);
      });
      const ratio = window.devicePixelRatio || 1;
      const width = Math.round(clientWidth * ratio);
      const height = Math.round(clientHeight * ratio);
      if (this.canvas.width !== width || this.canvas.height !== height) {
        Object.assign(this.canvas, { width, height });
        // Exactly: a stage of broken width would have the canvas resampled.
        Object.assign(this.canvas.style, { width: `${width / ratio}px`, height: `${height / ratio}px` });
      }
      const context = this.canvas.getContext("2d");
      context.clearRect(0, 0, width, height);
      const divider = Math.round(this.split * width);
      this.paintSide(context, "left", 0, divider, ratio);
      this.paintSide(context, "right", divider, width - divider, ratio);
      this.level.textContent = this.size >= 1 ? `${+this.size.toFixed(1)}×` : `${Math.round(100 * this.size)} %`;
      this.out.disabled = this.zoom === null;
      this.in.disabled = this.size >= LARGEST;
      this.stage.classList.toggle("moves", this.zoom !== null);
      this.canvas.dataset.painted = [this.shown.left, this.shown.right].filter((_, index) => Object.values(this.images)[index]).join(" ");
    }

    paintSide(context, side, from, span, ratio) {
      const image = this.images[side];
      if (!image || span <= 0) return;
      const { width, height } = this.view;
      const factor = this.view.sources[this.shown[side]].factor ?? 1;
      const size = this.size * ratio;
      context.save();
      context.beginPath();
      context.rect(from, 0, span, context.canvas.height);
      context.clip();
      context.imageSmoothingEnabled = size * factor < 1;
      context.imageSmoothingQuality = "high";
      const left = Math.round(context.canvas.width / 2 - this.centre[0] * size);
      const top = Math.round(context.canvas.height / 2 - this.centre[1] * size);
      // A stored image may be larger than this one: only its upper left part is meant.
      context.drawImage(image, 0, 0, width / factor, height / factor, left, top, width * size, height * size);
      context.restore();
    }

    /* Pointers */

    place(event) {
      const box = this.stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    }

    press(event) {
      if (event.button !== 0) return;
      const [x, y] = this.place(event);
      this.pointers.set(event.pointerId, [x, y]);
      this.stage.setPointerCapture(event.pointerId);
      this.handle.focus({ preventScroll: true });
      event.preventDefault();
      if (this.pointers.size === 2) {
        this.drag = { kind: "pinch", distance: this.spread(), size: this.size };
        return;
      }
      const near = Math.abs(x - this.split * this.stage.clientWidth) <= 22;
      const divides = near || this.zoom === null;
      this.drag = { kind: divides ? "split" : "pan", from: x, offset: near ? x - this.split * this.stage.clientWidth : 0 };
      // A finger may be about to scroll the page: it must move sideways first.
      this.drag.settled = near || event.pointerType !== "touch";
      this.stage.classList.toggle("moving", !divides);
      if (divides && this.drag.settled) this.divideAt(x);
    }

    move(event) {
      const before = this.pointers.get(event.pointerId);
      if (!before || !this.drag) return;
      const [x, y] = this.place(event);
      const middle = this.middle();
      this.pointers.set(event.pointerId, [x, y]);
      if (this.drag.kind === "pinch") {
        const now = this.middle();
        this.pan(now[0] - middle[0], now[1] - middle[1]);
        this.magnify(this.drag.size * this.spread() / this.drag.distance, ...now);
      } else if (this.drag.kind === "pan") {
        this.pan(x - before[0], y - before[1]);
      } else if (this.drag.settled || Math.abs(x - this.drag.from) > 6) {
        this.drag.settled = true;
        this.divideAt(x);
      }
    }

    lift(event) {
      this.pointers.delete(event.pointerId);
      this.stage.classList.remove("moving");
      this.drag = null; // a finger that stays after a pinch does nothing
    }

    divideAt(x) {
      this.divide((x - this.drag.offset) / this.stage.clientWidth);
    }

    spread() {
      const [a, b] = [...this.pointers.values()];
      return Math.max(Math.hypot(a[0] - b[0], a[1] - b[1]), 1);
    }

    middle() {
      const all = [...this.pointers.values()];
      return [0, 1].map((axis) => all.reduce((sum, point) => sum + point[axis], 0) / all.length);
    }

    doubled(event) {
      if (this.zoom === null) this.magnify(Math.max(4, 2 * this.fitted), ...this.place(event));
      else this.reset();
    }

    wheel(event) {
      const active = this.zoom !== null && this.card.contains(document.activeElement);
      if (!event.ctrlKey && !active) return;
      event.preventDefault();
      const pixels = event.deltaY * (event.deltaMode === 1 ? 16 : 1);
      this.magnify(this.size * Math.exp(-clamp(pixels, -120, 120) * (Math.abs(pixels) < 40 ? 0.01 : 0.003)), ...this.place(event));
    }

    /* Keys */

    key(event) {
      if (event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
      const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
      const arrow = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      const onHandle = event.target === this.handle;
      const actions = {
        "+": () => this.step(1), "=": () => this.step(1), "-": () => this.step(-1), 0: () => this.reset(),
        x: () => this.swap(), d: () => this.view.region && this.visit(),
      };
      const moves = { ArrowLeft: -0.02, ArrowDown: -0.02, ArrowRight: 0.02, ArrowUp: 0.02, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };
      if (digit) this.choose(event.shiftKey ? "left" : "right", digit[1] - 1);
      else if (arrow && event.shiftKey) this.pan(48 * arrow[0], 48 * arrow[1]);
      else if (onHandle && event.key in moves) this.divide(this.split + moves[event.key]);
      else if (event.key.toLowerCase() in actions) actions[event.key.toLowerCase()]();
      else return;
      event.preventDefault();
    }
  }

  /* The page */

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (button?.classList.contains("sort")) sort(button);
    if (button && "enlarges" in button.dataset) {
      const enlarged = button.closest("figure").querySelector(".scroll").classList.toggle("enlarged");
      button.setAttribute("aria-pressed", enlarged);
    }
  });

  document.addEventListener("change", ({ target }) => {
    if (target.dataset.showsPublished) {
      const table = document.getElementById(`table-${target.dataset.showsPublished}`);
      for (const body of table.querySelectorAll(".published")) body.hidden = !target.checked;
    }
  });

  document.addEventListener("DOMContentLoaded", () => {
    const viewers = new Map([...document.querySelectorAll(".card")].map((card) => [card, new Viewer(card)]));
    const sight = new IntersectionObserver((entries) => {
      for (const entry of entries) viewers.get(entry.target).show(entry.isIntersecting);
    }, { rootMargin: "300px 0px" });
    const sizes = new ResizeObserver((entries) => {
      for (const entry of entries) viewers.get(entry.target).resize();
    });
    const filter = () => {
      const chosen = document.querySelector("input[name=scale]:checked")?.value;
      for (const gallery of document.querySelectorAll(".gallery")) gallery.hidden = gallery.dataset.scale !== chosen;
    };
    filter();
    for (const card of viewers.keys()) {
      sight.observe(card);
      sizes.observe(card);
    }
    document.querySelectorAll("input[name=scale]").forEach((input) => input.addEventListener("change", filter));
    for (const select of document.querySelectorAll("select[data-all]")) {
      select.addEventListener("change", () => {
        for (const viewer of viewers.values()) viewer.chooseByName(select.dataset.all, select.value);
      });
    }
  });
})();

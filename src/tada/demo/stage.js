// The answer about a video: the playing video, and beside it the scores over time or the timeline of each model.
const COLORS = ["#3b82c4", "#e07b28", "#2fa37c", "#b565c9", "#8b93a1"];
let player = null, updates = [];

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "polyline", "line"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}

function seek(seconds) {
  if (!player) return;
  player.currentTime = Math.max(0, seconds);
  update();
}

function update() {
  if (player) updates.forEach((change) => change(player.currentTime));
}

function follow() {
  if (!player || !player.isConnected) return;
  update();
  if (!player.paused) requestAnimationFrame(follow);
}

// A strip over the whole length of the video: a click, or the arrow keys, seek; a line shows the time.
function track(seconds, label, ...children) {
  const cursor = make("div", { class: "tada-cursor" });
  const strip = make("div", { class: "tada-track", role: "slider", tabindex: "0", "aria-label": label,
    "aria-valuemin": "0", "aria-valuemax": seconds.toFixed(1), "aria-valuenow": "0" }, ...children, cursor);
  strip.addEventListener("click", (event) => {
    const box = strip.getBoundingClientRect();
    seek(((event.clientX - box.left) / box.width) * seconds);
  });
  strip.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step || event.target !== strip) return;
    event.preventDefault();
    seek(Math.min(seconds, player.currentTime + step * Math.max(seconds / 40, 0.1)));
  });
  updates.push((now) => {
    cursor.style.left = `${Math.min(100, (100 * now) / seconds)}%`;
    strip.setAttribute("aria-valuenow", now.toFixed(1));
  });
  return strip;
}

function axis(seconds) {
  return make("div", { class: "tada-axis" }, ...[0, 0.25, 0.5, 0.75, 1].map((part) => make("span", {}, clock(part * seconds))));
}

function scoreAt(times, scores, now) {
  let i = times.findIndex((time) => time >= now);
  if (i === -1) return scores[scores.length - 1];
  if (i === 0) return scores[0];
  const part = (now - times[i - 1]) / (times[i] - times[i - 1]);
  return scores[i - 1] + part * (scores[i] - scores[i - 1]);
}

function bar(score, color) {
  const fill = make("div", { style: `width:${100 * score}%;background:${color}` });
  return make("div", { class: "tada-bar" }, fill);
}

function chart(model, seconds) {
  const svg = make("svg", { viewBox: "0 0 1000 200", preserveAspectRatio: "none", "aria-hidden": "true" });
  for (const level of [0.25, 0.5, 0.75]) {
    svg.append(make("line", { x1: 0, x2: 1000, y1: 200 * (1 - level), y2: 200 * (1 - level), class: "tada-level" }));
  }
  const rows = model.curves.map((curve, i) => {
    const color = COLORS[i % COLORS.length];
    let points = model.times.map((time, j) => [(1000 * time) / seconds, 4 + 192 * (1 - curve.scores[j])]);
    points = [[0, points[0][1]], ...points, [1000, points[points.length - 1][1]]];
    svg.append(make("polyline", { points: points.map((point) => point.join(",")).join(" "), stroke: color }));
    const value = make("span", { class: "tada-value" }), gauge = bar(0, color);
    updates.push((now) => {
      const score = scoreAt(model.times, curve.scores, now);
      value.textContent = score.toFixed(2);
      gauge.firstChild.style.width = `${100 * score}%`;
    });
    return make("div", { class: "tada-row" }, make("span", { class: "tada-label", title: curve.label },
      make("span", { class: "tada-dot", style: `background:${color}` }), curve.label), gauge, value);
  });
  return [
    make("div", { class: "tada-now" }, ...rows),
    track(seconds, `scores over time of ${model.name}`, svg),
    axis(seconds),
    make("p", { class: "tada-note" }, `The bars show the scores at the playing moment: each point of the lines is that of ${model.window_seconds.toFixed(1)} s of the video around it. A click goes there.`),
  ];
}

function film(frames, caption) {
  const cells = frames.map((frame) => make("button", { class: "tada-frame", title: `go to ${clock(frame.seconds)}`,
    onclick: () => seek(frame.seconds) }, make("img", { src: frame.picture, alt: `the video at ${clock(frame.seconds)}` }),
    make("span", {}, clock(frame.seconds))));
  return make("figure", {}, make("div", { class: "tada-film" }, ...cells), make("figcaption", {}, caption));
}

// Magma's colors, from 0 to 1.
const MAGMA = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];
function magma(part) {
  const at = Math.min(Math.max(part, 0), 1) * (MAGMA.length - 1), low = Math.min(Math.floor(at), MAGMA.length - 2);
  return MAGMA[low].map((value, i) => Math.round(value + (at - low) * (MAGMA[low + 1][i] - value)));
}

function calibration(found, seconds) {
  const most = Math.max(1e-6, ...found.values.flat());
  const canvas = make("canvas", { width: found.times.length, height: found.layers.length, class: "tada-map", role: "img",
    "aria-label": "how far the kernels of each layer are from the shared kernel, in each frame of the clip" });
  const pen = canvas.getContext("2d");
  found.values.forEach((row, y) => row.forEach((value, x) => {
    pen.fillStyle = `rgb(${magma(value / most).join(",")})`;
    pen.fillRect(x, y, 1, 1);
  }));
  const names = make("div", { class: "tada-layers" }, make("span", { title: found.layers[0] }, found.layers[0]),
    make("span", { title: found.layers[found.layers.length - 1] }, found.layers[found.layers.length - 1]));
  const ticks = make("div", { class: "tada-ticks" }, ...[found.times[0], found.times[found.times.length - 1]].map((time) => make("span", {}, clock(time))));
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    seek(found.times[Math.min(found.times.length - 1, Math.floor(((event.clientX - box.left) / box.width) * found.times.length))]);
  });
  canvas.addEventListener("mousemove", (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.min(found.times.length - 1, Math.floor(((event.clientX - box.left) / box.width) * found.times.length));
    const y = Math.min(found.layers.length - 1, Math.floor(((event.clientY - box.top) / box.height) * found.layers.length));
    canvas.title = `${found.layers[y]} at ${clock(found.times[x])}: ${found.values[y][x].toFixed(3)}`;
  });
  return make("figure", {}, make("div", { class: "tada-calibration" }, names, make("div", {}, canvas, ticks)),
    make("figcaption", {}, `Calibrations over time: a row for each of ${found.layers.length} layers, a column for each frame of the clip; bright where a frame's kernel is far from the one that all share (up to ${most.toFixed(2)}).`));
}

function recognizer(model, seconds) {
  const said = model.several ? model.found.join(", ") || "none" : model.top[0][0];
  const parts = [make("h3", {}, model.name), make("p", { class: "tada-said" }, make("small", {}, "the video as a whole"), said,
    model.several ? null : make("span", {}, ` ${model.top[0][1].toFixed(2)}`)), ...chart(model, seconds)];
  if (model.heat) parts.push(film(model.heat.frames, `Where it looked (Grad-CAM): what speaks for “${model.heat.label}” in the clip where it is most probable.`));
  if (model.calibration) parts.push(calibration(model.calibration, seconds));
  if (model.note) parts.push(make("p", { class: "tada-note" }, model.note));
  return make("section", { class: "tada-card" }, ...parts);
}

function localizer(model, seconds) {
  const rows = model.labels.map((label, i) => {
    const own = model.segments.filter((segment) => segment.label === label).map((segment) => {
      const title = `${label}, ${clock(segment.start_seconds)} to ${clock(segment.end_seconds)}, ${segment.score.toFixed(2)}`;
      const box = make("button", { class: "tada-segment", title, "aria-label": title,
        style: `left:${(100 * segment.start_seconds) / seconds}%;width:${Math.max(0.4, (100 * (segment.end_seconds - segment.start_seconds)) / seconds)}%;background:${COLORS[i % COLORS.length]};opacity:${0.35 + 0.65 * segment.score}` });
      box.addEventListener("click", (event) => { event.stopPropagation(); seek(segment.start_seconds + 0.001); });
      updates.push((now) => box.classList.toggle("tada-is-now", now >= segment.start_seconds && now < segment.end_seconds));
      return box;
    });
    return make("div", { class: "tada-lane" }, make("span", { class: "tada-label", title: label }, label), track(seconds, `segments of ${label}`, ...own));
  });
  const empty = rows.length ? null : make("p", {}, "No segment was found.");
  const text = `${model.segments.length} segment${model.segments.length === 1 ? "" : "s"}; a click on one goes to its start.`;
  return make("section", { class: "tada-card" }, make("h3", {}, model.name), empty, ...rows, rows.length ? axis(seconds) : null,
    make("p", { class: "tada-note" }, text));
}

function answer(found) {
  player = make("video", { src: found.url, controls: "", playsinline: "", loop: "", preload: "auto", "aria-label": found.name });
  player.muted = true;
  for (const event of ["play", "seeked", "seeking", "timeupdate", "loadeddata"]) player.addEventListener(event, event === "play" ? follow : update);
  const cards = found.models.map((model) => (model.kind === "localizer" ? localizer : recognizer)(model, found.seconds));
  const left = make("div", { class: "tada-left" }, player, make("p", { class: "tada-name" }, `${found.name}, ${clock(found.seconds)}`),
    found.note ? make("p", { class: "tada-note" }, found.note) : null, film(found.film, "The video in eight frames; a click goes there."));
  player.play().catch(() => {});
  return make("div", { class: "tada-answer" }, left, make("div", { class: "tada-cards" }, ...cards));
}

function draw() {
  const place = element.querySelector(".tada-stage"), value = props.value || {};
  if (player) player.pause();
  player = null;
  updates = [];
  let shown;
  if (value.error) shown = make("p", { class: "tada-error", role: "alert" }, value.error);
  else if (value.working) shown = make("div", { class: "tada-working", role: "status" }, make("p", {}, value.working.text), bar(value.working.part, "var(--color-accent)"));
  else if (value.answer) shown = answer(value.answer);
  else shown = make("p", { class: "tada-hint" }, value.hint || "");
  place.replaceChildren(shown);
  update();
}
draw();
watch("value", draw);

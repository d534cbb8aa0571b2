// Label clips before a camera with the keyboard, train on them, and recognize live.
const MOST = 5, GOOD = 10, FPS = 15, HIGH = 120, CLIP_SECONDS = 2, READY_SECONDS = 0.8, KEEP_SECONDS = 12;
const state = { token: null, seconds: CLIP_SECONDS, ring: [], busy: false, next: [], halt: false, training: null, live: null, waits: false };
const gestures = [];

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function button(text, onclick, kind = "") {
  return make("button", { type: "button", class: `tada-button ${kind}`, onclick }, text);
}

async function ask(name, data = {}) {
  let answer;
  try {
    answer = await server[name]({ token: state.token, ...data });
  } catch (fault) {
    answer = { error: "the page's server does not answer: is `tada demo` still running?" };
  }
  if (answer.error) tell(answer.error);
  return answer;
}

const sleep = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

// -- the page's parts
const picture = make("video", { autoplay: "", playsinline: "", "aria-label": "your camera, mirrored" });
picture.muted = true;
const over = make("div", { class: "tada-over" });
const recorded = make("div", { class: "tada-recorded", style: "width:0" });
const camera = make("div", { class: "tada-camera" }, picture, over, recorded);
const message = make("p", { class: "tada-error", role: "alert", hidden: "" });
const list = make("div", {});
const actions = make("div", { class: "tada-actions" });
const progress = make("div", { class: "tada-working", role: "status", hidden: "" });
const live = make("div", { class: "tada-live", role: "status", hidden: "" });
const length = make("select", { class: "tada-button", "aria-label": "length of a clip",
  onchange: () => { state.seconds = Number(length.value); } },
  ...[1, 1.5, 2, 3, 4].map((seconds) => make("option", { value: seconds, ...(seconds === CLIP_SECONDS ? { selected: "" } : {}) }, `${seconds} s for a clip`)));
const keys = make("p", { class: "tada-keys" });
for (const [key, text] of [["1", "a clip of gesture 1, "], ["2", "of gesture 2; "], ["Shift+1", "ten in a row; "], ["⌫", "remove the last; "], ["Enter", "train; "], ["Esc", "stop"]]) {
  keys.append(make("kbd", {}, key), ` ${text} `);
}
const root = make("div", { class: "tada-teach" },
  make("div", {}, camera, make("div", { class: "tada-actions" }, length), keys, message),
  make("div", {}, list, actions, progress, live));

function tell(text) {
  message.textContent = text;
  message.hidden = !text;
}

// -- the camera
const canvas = document.createElement("canvas");
async function start() {
  tell("");
  if (!navigator.mediaDevices || !navigator.mediaDevices.getUserMedia) {
    tell("This browser gives a page the camera only at http://127.0.0.1, http://localhost or over https: open it there.");
    return;
  }
  try {
    picture.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 320 }, height: { ideal: 240 } }, audio: false });
  } catch (fault) {
    tell(`The browser gives no camera (${fault.name}): connect one, close other programs that use it, and allow it for this page.`);
    return;
  }
  await picture.play().catch(() => {});
  setInterval(take, 1000 / FPS);
  refresh();
}

function take() {
  if (!picture.videoWidth) return;
  canvas.height = HIGH;
  canvas.width = 2 * Math.round((HIGH * picture.videoWidth) / picture.videoHeight / 2);
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  const now = performance.now() / 1000;
  state.ring.push({ seconds: now, frame: canvas.toDataURL("image/jpeg", 0.8) });
  while (state.ring.length && state.ring[0].seconds < now - KEEP_SECONDS) state.ring.shift();
}

// -- clips
function add(name) {
  gestures.push({ number: gestures.length, name, clips: [] });
}

// What is pressed while a clip is recorded waits its turn.
function record(gesture, count) {
  if (!picture.srcObject || (state.training && !state.live)) return;
  for (let i = 0; i < count; i++) state.next.push(gesture);
  if (!state.busy) recordAll(count > 1);
}

async function recordAll(isFar) {
  tell("");
  state.busy = true;
  refresh();
  while (state.next.length) {
    const gesture = state.next.shift(), more = state.next.length ? ` (${state.next.length} more)` : "";
    over.textContent = `${gesture.name}: ready …${more}`;
    await sleep(isFar ? 2 * READY_SECONDS : READY_SECONDS);
    isFar = false;
    over.textContent = "";
    if (state.halt) break;
    await recordOne(gesture);
    refresh();
  }
  over.textContent = "";
  state.next = [];
  state.halt = false;
  state.busy = false;
  refresh();
}

async function recordOne(gesture) {
  camera.classList.add("tada-is-recording");
  const began = performance.now() / 1000;
  for (let now = began; now < began + state.seconds && !state.halt; now = performance.now() / 1000) {
    recorded.style.width = `${(100 * (now - began)) / state.seconds}%`;
    await sleep(0.05);
  }
  camera.classList.remove("tada-is-recording");
  recorded.style.width = "0";
  if (state.halt) return;
  const frames = state.ring.filter((one) => one.seconds >= began && one.seconds <= began + state.seconds);
  const answer = await ask("keep_clip", { gesture: gesture.number, frames: frames.map((one) => one.frame), times: frames.map((one) => one.seconds) });
  if (answer.error) state.halt = true;
  else gesture.clips.push({ name: answer.name, picture: frames[Math.floor(frames.length / 2)].frame });
}

async function drop(gesture, clip) {
  gesture.clips = gesture.clips.filter((one) => one !== clip);
  refresh();
  await ask("drop_clip", { name: clip.name });
}

function dropLast() {
  const all = gestures.flatMap((gesture) => gesture.clips.map((clip) => ({ gesture, clip, number: Number(clip.name.split("-")[1]) })));
  if (all.length) {
    const { gesture, clip } = all.reduce((one, other) => (one.number > other.number ? one : other));
    drop(gesture, clip);
  }
}

// -- training
const used = () => gestures.filter((gesture) => gesture.clips.length);
const isReady = () => used().length >= 2 && used().every((gesture) => gesture.clips.length >= 2);

async function train() {
  if (state.busy || (state.training && !state.live)) return;
  if (!isReady()) { tell("A training needs two or more clips of each of two gestures: ten are good."); return; }
  tell("");
  state.live = null;
  live.hidden = true;
  const names = Object.fromEntries(used().map((gesture) => [gesture.number, gesture.name]));
  const answer = await ask("train", { names });
  if (answer.error) return;
  state.training = answer;
  refresh();
  while (state.training && !state.live) {
    await sleep(0.7);
    const now = await ask("progress");
    if (now.error || now.state === "stopped") { state.training = null; break; }
    state.training = now;
    if (now.state === "failed") { tell(now.message); state.training = null; break; }
    if (now.state === "done") { state.live = now; recognize(now); }
    refresh();
  }
  refresh();
}

function inWords(now) {
  if (now.state === "waiting") return `waiting: ${now.ahead} training${now.ahead === 1 ? "" : "s"} of other visitors first`;
  if (now.state === "starting") return "starting from weights that know motion …";
  const left = now.seconds_left === null ? "" : `, about ${Math.max(1, Math.round(now.seconds_left))} s to go`;
  const right = now.top1 === null ? "" : `; ${Math.round(100 * now.top1)} % of the held-out clips are right`;
  return `epoch ${now.epoch} of ${now.epochs}${left}${right}`;
}

// -- live
async function recognize(found) {
  const said = make("div", { class: "tada-said" });
  const rows = found.labels.map((label) => {
    const fill = make("div", { style: "background:var(--tada-main)" }), value = make("span", { class: "tada-value" });
    const row = make("div", { class: "tada-row" }, make("span", { class: "tada-label", title: label }, label), make("div", { class: "tada-bar" }, fill), value);
    return { fill, value, row };
  });
  const held = found.top1 === null ? "" : ` Of ${found.num_held_out} held-out clips it got ${Math.round(found.top1 * found.num_held_out)} right.`;
  const take = make("a", { class: "tada-button", href: found.download, download: "gestures.zip" }, "Take the model with you");
  live.replaceChildren(said, ...rows.map((one) => one.row),
    make("p", { class: "tada-note" }, `Trained in ${Math.round(found.seconds)} s on ${found.num_clips - found.num_held_out} clips.${held} It sees the last ${found.window_seconds.toFixed(1)} s, and knows these gestures only.`),
    make("div", { class: "tada-actions" }, take));
  live.hidden = false;
  const count = found.num_frames;
  while (state.live === found) {
    const now = state.ring.length ? state.ring[state.ring.length - 1].seconds : 0;
    const since = now - found.window_seconds;
    const window = state.ring.filter((one) => one.seconds >= since);
    if (window.length < 4 || since < state.ring[0].seconds - 0.2 || state.busy) { await sleep(0.2); continue; }
    const frames = Array.from({ length: count }, (_, i) => {
      const at = since + ((i + 0.5) / count) * found.window_seconds;
      return window.reduce((one, other) => (Math.abs(other.seconds - at) < Math.abs(one.seconds - at) ? other : one)).frame;
    });
    const answer = await ask("look", { frames });
    if (answer.error) { if (state.live === found) state.live = null; break; }
    if (answer.scores) {
      const best = answer.scores.indexOf(Math.max(...answer.scores));
      said.textContent = answer.scores[best] >= 0.6 ? found.labels[best] : "…";
      rows.forEach((one, i) => {
        one.fill.style.width = `${100 * answer.scores[i]}%`;
        one.value.textContent = answer.scores[i].toFixed(2);
      });
    }
    await sleep(0.15);
  }
}

// -- what is shown
function refresh() {
  const isOn = Boolean(picture.srcObject), isTraining = Boolean(state.training) && !state.live, isFree = isOn && !state.busy && !isTraining;
  if (!isOn) over.replaceChildren(button("Start the camera", start, "tada-main"));
  else if (over.firstElementChild) over.replaceChildren();
  list.replaceChildren(...gestures.map((gesture) => {
    const name = make("input", { type: "text", maxlength: "40", "aria-label": `name of gesture ${gesture.number + 1}`,
      oninput: () => { gesture.name = name.value; }, onkeydown: (event) => { if (event.key === "Enter") name.blur(); } });
    name.value = gesture.name;
    const one = button("Record", () => record(gesture, 1)), ten = button("Ten in a row", () => record(gesture, Math.max(1, GOOD - gesture.clips.length)));
    one.disabled = !isFree;
    ten.disabled = !isFree || gesture.clips.length >= GOOD;
    const thumbs = gesture.clips.map((clip, i) => make("button", { type: "button", title: "remove this clip", "aria-label": `remove clip ${i + 1} of ${gesture.name}`,
      onclick: () => drop(gesture, clip) }, make("img", { src: clip.picture, alt: "" })));
    return make("div", { class: "tada-gesture" }, make("div", {}, make("kbd", {}, String(gesture.number + 1)), name,
      make("span", { class: "tada-count" }, `${gesture.clips.length} of ${GOOD}`), one, ten), make("div", { class: "tada-thumbs" }, ...thumbs));
  }));
  const go = button(state.live ? "Train again" : "Train", train, "tada-main");
  go.disabled = !isReady() || state.busy || isTraining;
  const more = button("Another gesture", () => { add(`gesture ${gestures.length + 1}`); refresh(); });
  more.disabled = gestures.length >= MOST || isTraining;
  const halt = isTraining ? button("Stop", stop) : null;
  actions.replaceChildren(...[go, more, halt].filter((child) => child !== null));
  progress.hidden = !isTraining;
  if (isTraining) {
    const fill = make("div", { style: `width:${(100 * state.training.epoch) / state.training.epochs}%;background:var(--tada-main)` });
    progress.replaceChildren(make("p", {}, inWords(state.training)), make("div", { class: "tada-bar" }, fill));
  }
}

async function stop() {
  state.halt = state.busy;
  if (state.training && !state.live) await ask("stop_training");
}

document.addEventListener("keydown", (event) => {
  const inText = event.target.closest && event.target.closest("input, textarea, select, button, a, video");
  const typed = event.target.closest && event.target.closest("input, textarea, select");
  if (!root.isConnected || root.offsetParent === null || event.ctrlKey || event.metaKey || event.altKey || typed) return;
  const number = /^Digit[1-9]$/.test(event.code) ? Number(event.code.slice(5)) : Number(event.key);
  if (event.key === "Escape") stop();
  else if (event.repeat) return;
  else if (number >= 1 && number <= gestures.length) {
    const gesture = gestures[number - 1];
    record(gesture, event.shiftKey ? Math.max(1, GOOD - gesture.clips.length) : 1);
  } else if (event.key === "Backspace") dropLast();
  else if (event.key === "Enter" && !inText) train();
  else return;
  event.preventDefault();
});

function mount() {
  state.token = props.value && props.value.token;
  const place = element.querySelector(".tada-gestures");
  if (root.parentNode !== place) place.replaceChildren(root);
  if (props.value && props.value.error) tell(props.value.error);
}
add("gesture 1");
add("gesture 2");
refresh();
mount();
watch("value", mount);

// One annotator's page: shows a pair, sends the judgement, shows the next. Text of models is only ever set as text.
"use strict";

const meta = (name) => document.querySelector(`meta[name="judging-${name}"]`).content;
const find = (id) => document.getElementById(id);
const KEYS = { a: "a", ArrowLeft: "a", b: "b", ArrowRight: "b", t: "tie", x: "bad", s: "skip" };
const token = meta("token");

let annotator = JSON.parse(meta("annotator")) || localStorage.getItem("annotator") || "";
let question = null, shown = 0, busy = false, judged = 0, timer = 0;
const scores = { a: null, b: null };

async function ask(path, body) {
  const options = { headers: { "X-Judging-Token": token } };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify({ annotator, ...body });
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The program that keeps the votes does not answer. Nothing is lost: start it again, then repeat.");
  }
  const state = await answer.json();
  if (!answer.ok) throw new Error(state.problem);
  return state;
}

async function move(path, body) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  clearTimeout(timer);
  try {
    show(await ask(path, body));
  } catch (error) {
    tell(error.message);
  }
  busy = false;
  document.body.classList.remove("busy");
  for (const chosen of document.querySelectorAll(".chosen")) chosen.classList.remove("chosen");
}

const next = () => move(`api/next?annotator=${encodeURIComponent(annotator)}`);

function vote(choice) {
  if (busy || !question) return;
  for (const chosen of document.querySelectorAll(`[data-choice="${choice}"], [data-side="${choice}"]`)) chosen.classList.add("chosen");
  const seconds = Math.round((performance.now() - shown) / 100) / 10;
  move("api/vote", { pair: question.pair, choice, score_a: scores.a, score_b: scores.b, seconds });
}

function undo() {
  if (judged && !busy) move("api/undo", {});
}

function score(side, value) {
  scores[side] = scores[side] === value ? null : value;
  for (const button of document.querySelectorAll(`[data-side="${side}"] .stars button`))
    button.setAttribute("aria-pressed", String(Number(button.textContent) === scores[side]));
}

function show(state) {
  judged = state.done;
  question = state.question;
  find("who").textContent = annotator;
  find("count").textContent = `${state.done} of ${state.total}`;
  find("done").style.width = `${state.total ? (100 * state.done) / state.total : 0}%`;
  find("done").parentNode.setAttribute("aria-valuemax", state.total);
  find("done").parentNode.setAttribute("aria-valuenow", state.done);
  find("hello").hidden = true;
  find("question").hidden = !question;
  find("choices").hidden = !question && !judged;
  find("pause").hidden = Boolean(question);
  find("undo").disabled = !judged;
  for (const button of document.querySelectorAll("[data-choice]")) button.disabled = !question;
  tell(state.problem);
  for (const side of ["a", "b"]) { scores[side] = null; score(side, null); }
  if (question) return lay(question);
  const waiting = state.waiting > 0 && !state.problem;
  find("pause").firstChild.textContent = waiting
    ? "The answers are still being written. The next pair appears here as soon as it is ready."
    : !state.total ? "The answers to every prompt are the same: there is nothing to judge."
    : state.done < state.total ? "There is nothing to judge until the answers can be made." : "That was the last one. Thank you.";
  if (waiting) timer = setTimeout(next, 1000);
}

function lay({ messages, a, b }) {
  const prompt = find("prompt");
  prompt.replaceChildren();
  for (const { role, content } of messages) {
    if (messages.length > 1) prompt.append(Object.assign(document.createElement("h3"), { textContent: role }));
    prompt.append(Object.assign(document.createElement("p"), { textContent: content.trim() }));
  }
  for (const [side, text] of [["a", a], ["b", b]]) {
    const place = document.querySelector(`[data-side="${side}"] .text`);
    place.textContent = text.trim() || "no answer";
    place.classList.toggle("nothing", !text.trim());
  }
  window.scrollTo(0, 0);
  shown = performance.now();
}

function tell(problem) {
  find("problem").textContent = problem || "";
  find("problem").hidden = !problem;
}

function hello() {
  clearTimeout(timer);
  question = null;
  for (const id of ["question", "choices", "pause", "problem"]) find(id).hidden = true;
  find("who").textContent = find("count").textContent = "";
  find("done").style.width = 0;
  find("hello").hidden = false;
  find("name").value = annotator;
  find("name").select();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !find("hello").hidden) return;
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (digit && question) {
    const number = (Number(digit[1]) + 9) % 10; // 1 to 5 for A, 6 to 9 and 0 for B
    score(number < 5 ? "a" : "b", (number % 5) + 1);
  } else if (key in KEYS) vote(KEYS[key]);
  else if (key === "u" || key === "Backspace") undo();
  else return;
  event.preventDefault();
});

for (const button of document.querySelectorAll("[data-choice]")) button.addEventListener("click", () => vote(button.dataset.choice));
for (const stars of document.querySelectorAll(".stars"))
  for (let value = 1; value <= 5; value++) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: value });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => score(stars.parentNode.dataset.side, value));
    stars.append(button);
  }
find("undo").addEventListener("click", undo);
find("who").addEventListener("click", hello);
find("hello").addEventListener("submit", (event) => {
  event.preventDefault();
  annotator = find("name").value.trim();
  if (!annotator) return;
  localStorage.setItem("annotator", annotator);
  next();
});

if (annotator) next();
else hello();

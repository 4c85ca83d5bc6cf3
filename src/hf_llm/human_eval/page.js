// One annotator's page: shows a pair, sends the vote, shows the next. A model's text is only ever set as text.
"use strict";

const byId = (id) => document.getElementById(id);
const readMeta = (name) => document.querySelector(`meta[name="arena-${name}"]`).content;
const CHOICE_KEYS = { a: "a", ArrowLeft: "a", b: "b", ArrowRight: "b", t: "tie", x: "bad", s: "skip" };
const POLL_MILLISECONDS = 1000; // between looks for answers that are still being generated
const token = readMeta("token");

let annotator = JSON.parse(readMeta("annotator")) || localStorage.getItem("annotator") || "";
let question = null; // {pair, messages, a, b}, null where none is shown
let shownAt = 0;
let votesCast = 0;
let isBusy = false;
let pollTimer = 0;
const scores = { a: null, b: null };

// Requests

async function request(path, body) {
  const options = { headers: { "X-Judging-Token": token } };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify({ annotator, ...body });
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The program that keeps the votes does not answer. Nothing is lost: start it again, then repeat.");
  }
  const state = await response.json();
  if (!response.ok) throw new Error(state.problem);
  return state;
}

async function requestAndShow(path, body) {
  if (isBusy) return;
  isBusy = true;
  document.body.classList.add("busy");
  clearTimeout(pollTimer);
  try {
    showState(await request(path, body));
  } catch (error) {
    showProblem(error.message);
  }
  isBusy = false;
  document.body.classList.remove("busy");
  for (const element of document.querySelectorAll(".chosen")) element.classList.remove("chosen");
}

function requestNext() {
  requestAndShow(`api/next?annotator=${encodeURIComponent(annotator)}`);
}

function vote(choice) {
  if (isBusy || !question) return;
  const chosen = document.querySelectorAll(`[data-choice="${choice}"], [data-side="${choice}"]`);
  for (const element of chosen) element.classList.add("chosen");
  const seconds = Math.round((performance.now() - shownAt) / 100) / 10;
  requestAndShow("api/vote", { pair: question.pair, choice, score_a: scores.a, score_b: scores.b, seconds });
}

function undo() {
  if (votesCast && !isBusy) requestAndShow("api/undo", {});
}

// A score that is given twice is taken back.
function toggleScore(side, value) {
  scores[side] = scores[side] === value ? null : value;
  showScore(side);
}

// What the page shows

function showState(state) {
  votesCast = state.done;
  question = state.question;

  byId("who").textContent = annotator;
  byId("count").textContent = `${state.done} of ${state.total}`;
  byId("done").style.width = `${state.total ? (100 * state.done) / state.total : 0}%`;
  byId("done").parentNode.setAttribute("aria-valuemax", state.total);
  byId("done").parentNode.setAttribute("aria-valuenow", state.done);

  byId("hello").hidden = true;
  byId("question").hidden = !question;
  byId("choices").hidden = !question && !votesCast;
  byId("pause").hidden = Boolean(question);
  byId("undo").disabled = !votesCast;
  for (const button of document.querySelectorAll("[data-choice]")) button.disabled = !question;

  showProblem(state.problem);
  for (const side of ["a", "b"]) {
    scores[side] = null;
    showScore(side);
  }

  if (question) {
    showQuestion(question);
    return;
  }
  byId("pause").firstChild.textContent = reasonForPause(state);
  byId("next").hidden = !state.report;
  byId("next").lastElementChild.textContent = state.report || "";
  if (isWaiting(state)) pollTimer = setTimeout(requestNext, POLL_MILLISECONDS);
}

function isWaiting(state) {
  return state.waiting > 0 && !state.problem;
}

function reasonForPause(state) {
  if (isWaiting(state)) {
    return "The answers are still being generated. The next pair appears here as soon as it is ready.";
  }
  if (!state.total) return "The answers to every prompt are the same: there is nothing to vote on.";
  if (state.done < state.total) return "There is nothing to vote on until the answers can be generated.";
  return "That was the last one. Thank you.";
}

function showQuestion({ messages, a, b }) {
  const prompt = byId("prompt");
  prompt.replaceChildren();
  for (const { role, content } of messages) {
    if (messages.length > 1) prompt.append(Object.assign(document.createElement("h3"), { textContent: role }));
    prompt.append(Object.assign(document.createElement("p"), { textContent: content.trim() }));
  }
  showAnswer("a", a);
  showAnswer("b", b);
  window.scrollTo(0, 0);
  shownAt = performance.now();
}

function showAnswer(side, text) {
  const element = document.querySelector(`[data-side="${side}"] .text`);
  element.textContent = text.trim() || "no answer";
  element.classList.toggle("nothing", !text.trim());
}

function showScore(side) {
  for (const button of document.querySelectorAll(`[data-side="${side}"] .stars button`)) {
    const isGiven = Number(button.textContent) === scores[side];
    button.setAttribute("aria-pressed", String(isGiven));
  }
}

function showProblem(problem) {
  byId("problem").textContent = problem || "";
  byId("problem").hidden = !problem;
}

function showNameForm() {
  clearTimeout(pollTimer);
  question = null;
  for (const id of ["question", "choices", "pause", "problem"]) byId(id).hidden = true;
  byId("who").textContent = "";
  byId("count").textContent = "";
  byId("done").style.width = 0;
  byId("hello").hidden = false;
  byId("name").value = annotator;
  byId("name").select();
}

// Keys and buttons

document.addEventListener("keydown", (event) => {
  const hasModifier = event.ctrlKey || event.metaKey || event.altKey;
  if (hasModifier || event.repeat || !byId("hello").hidden) return;
  const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (digit && question) {
    const number = (Number(digit[1]) + 9) % 10; // 1 to 5 for A, 6 to 9 and 0 for B
    toggleScore(number < 5 ? "a" : "b", (number % 5) + 1);
  } else if (key in CHOICE_KEYS) {
    vote(CHOICE_KEYS[key]);
  } else if (key === "u" || key === "Backspace") {
    undo();
  } else {
    return;
  }
  event.preventDefault();
});

for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", (event) => {
    if (event.detail) button.blur(); // pressed with a finger or a mouse: the next pair begins without a mark
    vote(button.dataset.choice);
  });
}
for (const stars of document.querySelectorAll(".stars")) {
  for (let value = 1; value <= 5; value++) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: value });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => toggleScore(stars.parentNode.dataset.side, value));
    stars.append(button);
  }
  stars.append(Object.assign(document.createElement("span"), { textContent: "5 is best" }));
}
byId("undo").addEventListener("click", undo);
byId("who").addEventListener("click", showNameForm);
byId("hello").addEventListener("submit", (event) => {
  event.preventDefault();
  annotator = byId("name").value.trim();
  if (!annotator) return;
  localStorage.setItem("annotator", annotator);
  requestNext();
});

if (annotator) requestNext();
else showNameForm();

"use strict";
// What HTML and htmx cannot: open the passage that a citation names, and show how far an upload is.

document.addEventListener("click", (event) => {
  const link = event.target.closest("a.cite");
  if (!link) return;
  const passage = document.getElementById(decodeURIComponent(link.hash.slice(1)));
  if (!passage) return;
  event.preventDefault();
  passage.open = true;
  passage.scrollIntoView({ behavior: "smooth", block: "nearest" });
  passage.querySelector("summary").focus({ preventScroll: true });
});

// Enter asks; Shift+Enter is a new line; neither while a Japanese word is being converted.
document.addEventListener("keydown", (event) => {
  if (event.target.id !== "q" || event.key !== "Enter" || event.shiftKey) return;
  if (event.isComposing || event.keyCode === 229) return; // 229: Safari, behind the end of a conversion
  event.preventDefault();
  event.target.form.requestSubmit();
});

document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.id !== "upload") return;
  const form = event.target;
  const files = [...form.querySelector("#files").files];
  const large = files.find((file) => file.size > Number(form.dataset.max));
  if (large) say(form.dataset.tooLarge.replace("{}", large.name));
  else if (files.length > Number(form.dataset.maxFiles)) say(form.dataset.tooMany);
  else return;
  event.preventDefault();
});

function problem(text) {
  const words = document.createElement("p");
  words.className = "problem";
  words.setAttribute("role", "alert");
  words.textContent = text;
  return words;
}

function say(text) {
  document.getElementById("said").replaceChildren(problem(text));
}

document.addEventListener("htmx:sendError", (event) => {
  const place = event.detail.target ?? document.getElementById("answer");
  place.replaceChildren(problem(document.body.dataset.unreachable));
});

document.addEventListener("htmx:xhr:progress", (event) => {
  if (event.target.id !== "upload" || !event.detail.lengthComputable) return;
  const bar = document.getElementById("progress");
  bar.hidden = false;
  bar.value = (100 * event.detail.loaded) / event.detail.total;
});

document.addEventListener("htmx:afterRequest", (event) => {
  if (event.target.id !== "upload") return;
  document.getElementById("progress").hidden = true;
  if (event.detail.successful) event.target.reset();
});

// Examples are links that work by themselves; here they fill in the question.
document.addEventListener("click", (event) => {
  const link = event.target.closest(".examples a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  document.getElementById("q").value = link.textContent;
  document.getElementById("q").form.requestSubmit();
});

// A screen reader waits until an answer is whole.
document.addEventListener("htmx:sseClose", (event) => {
  event.target.querySelector("[aria-busy]")?.setAttribute("aria-busy", "false");
});

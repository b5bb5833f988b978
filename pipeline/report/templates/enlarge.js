"use strict";
const dialog = document.getElementById("enlarged");
const buttons = Array.from(document.querySelectorAll("button.enlarge"));
let current = 0;

function show(index) {
  current = (index + buttons.length) % buttons.length;
  const source = buttons[current].querySelector("img");
  const image = new Image();
  image.src = source.src;
  image.alt = source.alt;
  image.className = source.className;
  dialog.querySelector("figure div").replaceChildren(image);
  dialog.querySelector("figcaption").textContent = source.alt;
  if (!dialog.open) dialog.showModal();
}

buttons.forEach((button, index) => button.addEventListener("click", () => show(index)));
dialog.addEventListener("click", (event) => {
  const step = event.target.dataset.step;
  if (event.target === dialog || step === "0") dialog.close();
  else if (step) show(current + Number(step));
});
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) {
    event.preventDefault();
    show(current + step);
  }
});
dialog.addEventListener("close", () => buttons[current].focus());

// Rows, columns and points of methods and tasks that are not chosen are hidden, in every table and figure.
const choices = document.querySelector(".choices");
if (choices) {
  const boxes = [...choices.querySelectorAll("input")];
  const follow = () => {
    const off = new Set(boxes.filter((box) => !box.checked).map((box) => `${box.name} ${box.value}`));
    for (const part of document.querySelectorAll("main [data-method], main [data-task]")) {
      const { method, task } = part.dataset;
      part.toggleAttribute("hidden", off.has(`method ${method}`) || off.has(`task ${task}`));
    }
  };
  choices.hidden = false;
  choices.addEventListener("change", follow);
  choices.addEventListener("click", (event) => {
    if (event.target.tagName !== "BUTTON") return;
    const all = event.target.value === "all";
    event.target.closest("fieldset").querySelectorAll("input").forEach((box) => { box.checked = all; });
    follow();
  });
  follow(); // a reloaded page keeps its boxes
}

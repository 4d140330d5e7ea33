// Filters hide rows, and tables without any; a click on a heading sorts. Rows with an alarm, and yardsticks, stay last.
const form = document.querySelector(".filters"), status_ = document.querySelector(".status");
const rows = [...document.querySelectorAll("tr[data-f]")].map((row) => ({ row, values: row.dataset.f.split(" ") }));
const filter = () => {
  const selects = [...form.querySelectorAll("select")], wanted = selects.map((select) => select.value);
  let shown = 0;
  for (const { row, values } of rows) {
    row.hidden = wanted.some((value, place) => value !== "" && value !== values[place]);
    shown += !row.hidden;
  }
  for (const section of document.querySelectorAll("section")) section.hidden = !section.querySelector("tr[data-f]:not([hidden])");
  const chosen = selects.filter((select) => select.value !== "").map((select) => `${select.name} ${select.selectedOptions[0].text}`);
  document.body.classList.toggle("one-task", selects[0].value !== "");
  status_.textContent = `${shown} of ${rows.length} rows${chosen.length ? ": " + chosen.join(", ") : ""}.`;
};
form.hidden = false;
form.addEventListener("change", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
filter();

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const textual = getComputedStyle(head).textAlign === "left", button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    const key = (row) => {
      const text = row.cells[column].textContent.trim(), number = parseFloat(text);
      return textual ? text : number;
    };
    button.addEventListener("click", () => {
      const up = head.ariaSort === "descending" || (head.ariaSort !== "ascending" && (textual || head.textContent === "rank"));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => {
        const off = a.classList.contains("off") - b.classList.contains("off"), x = key(a), y = key(b);
        if (off) return off;
        if (textual) return up ? x.localeCompare(y) : y.localeCompare(x);
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
        return up ? x - y : y - x;
      };
      [...body.rows].sort(order).forEach((row) => body.append(row));
    });
  });
}

// A button in each heading sorts its table: numbers from the largest, text from A; pressed again, it reverses the order.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const textual = head.classList.contains("text");
    const key = (row) => {
      const text = row.cells[column].textContent.trim(), number = parseFloat(text.replace(/,/g, ""));
      return textual || isNaN(number) ? text : number;
    };
    const order = (a, b) => {
      const x = key(a), y = key(b);
      if (typeof x !== typeof y) return typeof x === "number" ? 1 : -1;
      return typeof x === "number" ? x - y : x.localeCompare(y);
    };
    const button = document.createElement("span"); // Chromium prints no <button> where a heading is repeated on the next page
    button.role = "button";
    button.tabIndex = 0;
    button.append(...head.childNodes);
    head.append(button);
    const sort = () => {
      const up = head.ariaSort === "descending" || (textual && head.ariaSort !== "ascending");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.ariaSort = up ? "ascending" : "descending";
      [...body.rows].sort((a, b) => (up ? order(a, b) : order(b, a))).forEach((row) => body.append(row));
    };
    head.addEventListener("click", sort);
    button.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort();
    });
  });
}

// A figure's points say their values: the one nearest to the pointer, or the one that the arrow keys have moved to.
const tip = document.createElement("div");
tip.className = "tip";
tip.setAttribute("role", "status");
document.body.append(tip);
let shown = null;
const middle = (point) => {
  const box = point.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
};
const show = (point) => {
  shown?.classList.remove("shown");
  shown = point;
  const method = point?.closest("[data-method]")?.dataset.method;
  tip.textContent = point ? [method, point.dataset.value].filter(Boolean).join(", ") : "";
  if (!point) return;
  point.classList.add("shown");
  const [x, y] = middle(point), half = tip.offsetWidth / 2, width = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(4, Math.min(width - 2 * half - 4, x - half))}px`;
  tip.style.top = `${y - tip.offsetHeight - 12 > 0 ? y - tip.offsetHeight - 12 : y + 12}px`;
};
for (const figure of document.querySelectorAll("figure:has([data-value])")) {
  const visible = () => [...figure.querySelectorAll("[data-value]")].filter((point) => point.getClientRects().length);
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  figure.tabIndex = 0;
  figure.addEventListener("pointermove", (event) => {
    const distance = (point) => Math.hypot(middle(point)[0] - event.clientX, middle(point)[1] - event.clientY);
    const [near] = visible().map((point) => [distance(point), point]).sort((a, b) => a[0] - b[0]);
    show(event.target.closest("[data-value]") ?? (near && near[0] < 16 ? near[1] : null));
  });
  figure.addEventListener("pointerleave", () => show(null));
  figure.addEventListener("blur", () => show(null));
  figure.addEventListener("keydown", (event) => {
    if (event.key === "Escape") show(null);
    if (!(event.key in steps) || event.target !== figure) return;
    event.preventDefault();
    const points = visible(), next = points.indexOf(shown) + steps[event.key];
    const point = points[Math.max(0, Math.min(points.length - 1, next))];
    point?.scrollIntoView({ block: "nearest", inline: "nearest" });
    show(point);
  });
}
addEventListener("scroll", () => show(shown), { capture: true });

// <tw-time at="microseconds" mode="ago|time|since">: local time, UTC on hover; "ago" counts by itself.
class TwTime extends HTMLElement {
  static observedAttributes = ["at", "mode"];
  connectedCallback() {
    this.draw();
    if (this.getAttribute("mode") === "ago") this.timer = setInterval(() => this.draw(), 1000);
  }
  disconnectedCallback() {
    clearInterval(this.timer);
  }
  attributeChangedCallback() {
    this.draw();
  }
  draw() {
    const at = Number(this.getAttribute("at")) / 1000;
    if (!at) {
      this.textContent = "-";
      return;
    }
    const when = new Date(at);
    this.title = when.toISOString().replace("T", " ").replace(/\.\d+Z/, " UTC");
    if (this.getAttribute("mode") === "ago") {
      const s = Math.max(0, Math.round((Date.now() - at) / 1000));
      this.textContent =
        s < 100 ? `${s} s ago` : s < 6000 ? `${Math.round(s / 60)} min ago` : s < 172800
          ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`;
      return;
    }
    const today = when.toDateString() === new Date().toDateString();
    const time = when.toLocaleTimeString([], { hour12: false });
    this.textContent = today ? time : `${when.toLocaleDateString()} ${time}`;
  }
}
customElements.define("tw-time", TwTime);

// "/" goes to the search field, as in many consoles.
document.addEventListener("keydown", (event) => {
  const typing = /INPUT|TEXTAREA|SELECT/.test(document.activeElement?.tagName ?? "");
  const field = document.querySelector("input[type=search], .search input");
  if (event.key === "/" && !typing && field) {
    event.preventDefault();
    field.focus();
  }
});

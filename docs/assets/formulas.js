// Formulas, where pymdownx.arithmatex has put them between \( \) or \[ \].
document.addEventListener("DOMContentLoaded", () => {
  const delimiters = [
    { left: "\\[", right: "\\]", display: true },
    { left: "\\(", right: "\\)", display: false },
  ];
  for (const element of document.querySelectorAll(".arithmatex, .jp-RenderedMarkdown")) {
    renderMathInElement(element, { delimiters, throwOnError: true });
  }
});

(function () {
  "use strict";
  var root = document.documentElement;
  var button = document.querySelector("button.theme");
  function dark() {
    var said = root.getAttribute("data-theme");
    return said ? said === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function name() {
    button.textContent = dark() ? "Light paper" : "Dark paper";
  }
  button.hidden = false;
  name();
  button.addEventListener("click", function () {
    root.setAttribute("data-theme", dark() ? "light" : "dark");
    name();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", name);

  function reveal() {
    var id = decodeURIComponent(location.hash.slice(1));
    var goal = id && document.getElementById(id);
    for (var at = goal; at; at = at.parentElement) {
      if (at.tagName === "DETAILS") at.open = true;
    }
    if (goal) goal.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);

  var figures = Array.prototype.slice.call(document.querySelectorAll("figure[data-chart]"));
  Promise.all(figures.map(function (figure) {
    var drawn = figure.querySelector(".drawn");
    var live = figure.querySelector(".live");
    var spec = JSON.parse(figure.querySelector("script").textContent);
    spec.width = "container";
    live.hidden = false;
    return vegaEmbed(live, spec, { renderer: "svg", actions: false, ast: true }).then(function () {
      drawn.hidden = true;
      figure.setAttribute("data-live", "");
    }, function (error) {
      live.hidden = true;
      console.error("chart " + figure.id + ": " + error);
    });
  })).then(function () {
    root.setAttribute("data-charts", String(document.querySelectorAll("figure[data-live]").length));
    reveal();
  });
})();

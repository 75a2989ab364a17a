// Lint of the page's scripts: npx --yes eslint@9 -c tests/js/eslint.config.mjs assets tests/js
// Gradio gets several of them at a time as one function body, so a name of one file is known in the others.
import { readFileSync, readdirSync } from "node:fs";

const files = readdirSync("assets").filter((name) => name.endsWith(".js"));
const declared = (text) => [...text.matchAll(/^(?:async )?(?:function|class|const|let) (\w+)/gm)].map(([, name]) => name);
const names = (list) => Object.fromEntries(list.map((name) => [name, "readonly"]));
const shared = names(files.flatMap((name) => declared(readFileSync(`assets/${name}`, "utf-8"))));
const browser = names(
  (
    "Blob CustomEvent Event IntersectionObserver MutationObserver Node ResizeObserver URL " +
    "cancelAnimationFrame document getSelection localStorage location matchMedia navigator performance " +
    "requestAnimationFrame setTimeout clearTimeout window"
  ).split(" "),
);

const rules = {
  "array-callback-return": "error",
  "consistent-this": "error",
  "constructor-super": "error",
  "eqeqeq": "error",
  "for-direction": "error",
  "getter-return": "error",
  "no-alert": "error",
  "no-caller": "error",
  "no-cond-assign": ["error", "except-parens"],
  "no-console": "error",
  "no-const-assign": "error",
  "no-constant-condition": "error",
  "no-debugger": "error",
  "no-dupe-args": "error",
  "no-dupe-class-members": "error",
  "no-dupe-else-if": "error",
  "no-dupe-keys": "error",
  "no-duplicate-case": "error",
  "no-empty": "error",
  "no-eval": "error",
  "no-fallthrough": "error",
  "no-func-assign": "error",
  "no-implied-eval": "error",
  "no-irregular-whitespace": "error",
  "no-loss-of-precision": "error",
  "no-new-func": "error",
  "no-prototype-builtins": "error",
  "no-self-assign": "error",
  "no-self-compare": "error",
  "no-shadow-restricted-names": "error",
  "no-sparse-arrays": "error",
  "no-this-before-super": "error",
  "no-throw-literal": "error",
  "no-undef": "error",
  "no-unreachable": "error",
  "no-unsafe-finally": "error",
  "no-unsafe-negation": "error",
  "no-unsafe-optional-chaining": "error",
  "no-unused-vars": ["error", { vars: "local", args: "after-used", caughtErrors: "none" }],
  "no-useless-catch": "error",
  "no-useless-escape": "error",
  "no-var": "error",
  "prefer-const": "error",
  "use-isnan": "error",
  "valid-typeof": "error",
  // Model text reaches the page through textContent and attributes only.
  "no-restricted-properties": [
    "error",
    ...["innerHTML", "outerHTML", "insertAdjacentHTML", "srcdoc"].map((property) => ({ property })),
    { object: "document", property: "write" },
  ],
};

export default [
  {
    files: ["assets/*.js"],
    languageOptions: { ecmaVersion: 2024, sourceType: "script", globals: { ...browser, ...shared } },
    rules,
  },
  {
    files: ["assets/offline.js"], // what it declares is used by the scripts that are put into it
    rules: { "no-unused-vars": "off" },
  },
  {
    files: ["tests/js/*.mjs"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module" },
    rules: { ...rules, "no-new-func": "off", "no-undef": "off", "no-unused-vars": "error" },
  },
];

// Measures @simplewebauthn/server, as its documentation says. Reads one JSON request per line, answers with one line.
//   {"prepare": name, "kind": "registration" | "authentication", "now": ms, ...options} -> {} or {"refused": why}
//   {"measure": name, "times": n}                                                       -> {"cpu_us": per call}
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(`${process.argv[2]}/index.js`);
const { SettingsService, verifyAuthenticationResponse, verifyRegistrationResponse } = await import(
  pathToFileURL(require.resolve("@simplewebauthn/server").replace("/script/", "/esm/")).href
);

const RealDate = Date;
let now = RealDate.now();
globalThis.Date = class extends RealDate {
  constructor(...parts) {
    super(...(parts.length ? parts : [now]));
  }
  static now() {
    return now;
  }
};

const prepared = new Map();

async function prepare(request) {
  const { prepare: name, kind, format, roots, options } = request;
  if (options.credential) options.credential.publicKey = Buffer.from(options.credential.publicKey, "base64url");
  const verify = kind === "registration" ? verifyRegistrationResponse : verifyAuthenticationResponse;
  const act = async () => {
    now = request.now;
    if (roots.length) SettingsService.setRootCertificates({ identifier: format, certificates: roots });
    const { verified } = await verify(options);
    if (!verified) throw new Error("not verified");
  };
  await act();
  prepared.set(name, act);
  return {};
}

async function measure({ measure: name, times }) {
  const act = prepared.get(name);
  const before = process.cpuUsage();
  for (let i = 0; i < times; i++) await act();
  const { user, system } = process.cpuUsage(before);
  return { cpu_us: (user + system) / times };
}

for await (const line of createInterface({ input: process.stdin })) {
  let answer;
  try {
    const request = JSON.parse(line);
    answer = request.prepare ? await prepare(request) : await measure(request);
  } catch (error) {
    answer = { refused: String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}

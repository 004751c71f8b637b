// Browsers, started as a person would: with an address. What they see they tell the site by themselves.

import { mkdir } from "node:fs/promises";
import { join } from "node:path";

import { remove, start, temporary } from "./kit.mjs";

const CHROMIUM = process.env.WINDLASS_CHROMIUM ?? "chromium";
const MINI_BROWSER = process.env.WINDLASS_MINI_BROWSER ?? "/usr/lib/x86_64-linux-gnu/webkit2gtk-4.1/MiniBrowser";

/** How each is started; `home` is an empty folder. */
const BROWSERS = {
  Chromium: (url, home) => [
    CHROMIUM,
    ["--headless=new", "--no-sandbox", "--no-first-run", "--disable-gpu", "--remote-debugging-port=0", `--user-data-dir=${home}`, url],
  ],
  Firefox: (url, home) => ["firefox-esr", ["--headless", "--no-remote", "--profile", home, url]],
  // It has no mode without a screen.
  WebKitGTK: (url) => ["xvfb-run", ["-a", "dbus-run-session", "--", MINI_BROWSER, url]],
};

export const browsers = Object.keys(BROWSERS);

export async function open(browser, url) {
  const home = await temporary();
  const profile = join(home, "profile");
  await mkdir(profile);
  const [command, args] = BROWSERS[browser](url, profile);
  const env = {
    HOME: home,
    XDG_RUNTIME_DIR: home,
    LIBGL_ALWAYS_SOFTWARE: "1",
    // It cannot make its sandbox in a container.
    WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS: "1",
  };
  const program = start(command, args, { cwd: home, env });
  const end = async () => {
    await program.end();
    await remove(home);
  };
  return { ...program, end };
}

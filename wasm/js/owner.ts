/** Who asks, unless the program says it: for people to see. */

interface Host {
  location?: { origin?: string };
  process?: {
    pid?: number;
    env?: Record<string, string | undefined>;
    getBuiltinModule?: (name: string) => { hostname(): string } | undefined;
  };
  Deno?: unknown;
  navigator?: { userAgent?: string };
}

export function thisProgram(): string {
  const { location, process, Deno, navigator } = globalThis as Host;
  if (location?.origin !== undefined) return `page of ${location.origin}`;
  // Deno would ask its user whether we may know more.
  if (Deno === undefined && process?.pid !== undefined) {
    const { USER, LOGNAME, USERNAME } = process.env ?? {};
    const host = process.getBuiltinModule?.("node:os")?.hostname() ?? "localhost";
    return `${USER ?? LOGNAME ?? USERNAME ?? "somebody"}@${host}:${process.pid}`;
  }
  return navigator?.userAgent ?? "javascript";
}

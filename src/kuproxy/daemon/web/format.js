// Numbers as people read them. An en dash stands for what is not known yet.

const UNITS = ["", "k", "M", "G", "T", "P"];

/** Three digits and a unit: 0.4, 12, 1.3k, 25.0M. */
export function short(number) {
  if (number === null || number === undefined) return "–";
  if (number === 0) return "0";
  if (number < 10) return number.toFixed(1).replace(/\.0$/, "");
  let unit = 0;
  while (number >= 999.5 && unit < UNITS.length - 1) {
    number /= 1000;
    unit += 1;
  }
  return unit === 0 || number >= 99.95 ? number.toFixed(0) + UNITS[unit] : number.toFixed(1) + UNITS[unit];
}

export function percent(share) {
  return share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)} %`;
}

export function seconds(value) {
  if (value < 60) return `${value.toFixed(1)} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(value % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function endpoint(address, port) {
  if (!port) return address;
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

const PROTOCOLS = { 1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6", 132: "sctp" };

export function protocol(number) {
  return PROTOCOLS[number] ?? String(number);
}

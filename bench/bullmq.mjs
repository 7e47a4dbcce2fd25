// BullMQ's side of the job rows: `node bullmq.mjs '{"port": 6399, "jobs": 50000, "concurrency": 100, "waitMs": 0, "what": "throughput"}'`,
// in a folder that has BullMQ in its node_modules. The last line it prints is the result as JSON.
import { createRequire } from 'node:module';
import { performance } from 'node:perf_hooks';

const require = createRequire(process.cwd() + '/');
const { Queue, Worker } = require('bullmq');

const CHUNK = 500;
const { port, jobs, concurrency, waitMs, what } = JSON.parse(process.argv[2]);
const connection = { host: '127.0.0.1', port };
const name = `bench-${process.pid}`;
const queue = new Queue(name, { connection, defaultJobOptions: { removeOnComplete: 100, removeOnFail: 500, attempts: 3 } });
const input = number => ({ ticket: `ticket-${number}`, text: 'x'.repeat(60) });

async function throughput() {
  let count = 0, from, finish;
  const warm = Math.max(1, Math.floor(jobs / 10));
  const ended = new Promise(resolve => { finish = resolve; });
  const worker = new Worker(name, async job => {
    if (waitMs) await new Promise(resolve => setTimeout(resolve, waitMs));
    return { label: job.data.ticket };
  }, { connection, concurrency });
  worker.on('completed', () => {
    count += 1;
    if (count === warm) from = performance.now();
    if (count === jobs) finish(performance.now());
  });
  await worker.waitUntilReady();
  for (let at = 0; at < jobs; at += CHUNK) {
    const size = Math.min(CHUNK, jobs - at);
    await queue.addBulk(Array.from({ length: size }, (_, index) => ({ name: 'classify', data: input(at + index) })));
  }
  const to = await ended;
  await worker.close();
  return { rate: (jobs - warm) / ((to - from) / 1000) };
}

async function single() {
  const seen = [];
  for (let number = 0; number < jobs; number += 1) {
    const began = performance.now();
    await queue.add('classify', input(number));
    seen.push(performance.now() - began);
  }
  seen.sort((one, other) => one - other);
  return { p50_ms: seen[Math.floor(jobs / 2)], p99_ms: seen[Math.floor(jobs * 0.99)] };
}

const result = what === 'single' ? await single() : await throughput();
await queue.obliterate({ force: true });
await queue.close();
console.log(JSON.stringify(result));
process.exit(0);

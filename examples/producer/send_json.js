// Write events as JSON with kafkajs.
//
//     npm install kafkajs
//     node send_json.js HOST:PORT TASK CHANNELS SAMPLES CLASSES [EVENTS]
//
// TASK is the task's name and version: wrist.v1. The key of a message is the device; its value is
// one event or a list of events. `tidewheel schema` prints what an event may have.

const { Kafka, Partitioners, logLevel } = require("kafkajs");

const [broker, task, ...numbers] = process.argv.slice(2);
const [channels, samples, classes, events = 60] = numbers.map(Number);
const device = "my-device";
const begin = Date.now() - events * 1000;

const event = (n) => ({
  time: new Date(begin + n * 1000).toISOString(),
  segment: Array.from({ length: channels }, () => Array.from({ length: samples }, Math.random)),
  answer: n % classes, // or the class's name
  event_id: `order-${n}`,
});

async function main() {
  const kafka = new Kafka({ brokers: [broker], logLevel: logLevel.ERROR });
  const producer = kafka.producer({ createPartitioner: Partitioners.DefaultPartitioner });
  await producer.connect();
  for (let first = 0; first < events; first += 20) {
    const count = Math.min(20, events - first);
    const rows = Array.from({ length: count }, (_, i) => event(first + i));
    const message = { key: device, value: JSON.stringify(rows) };
    await producer.send({ topic: `${task}.events`, acks: -1, messages: [message] });
  }
  await producer.disconnect();
  console.log(`sent ${events} events of ${device}`);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

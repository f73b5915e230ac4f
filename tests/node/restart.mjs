// Two scenes around a restart of the server. `before` prints a response, and the events that were
// seen of it until the client hung up; `after ID NUMBER` prints the events behind that number.

import { MODEL, all, client } from './sdk.mjs';

const [scene, id, number] = process.argv.slice(2);
if (scene === 'before') {
  const events = [];
  for await (const event of await client.responses.create({
    model: MODEL,
    input: 'hello',
    stream: true,
  })) {
    events.push(event);
  }
  console.log(JSON.stringify(events));
} else {
  const stream = await client.responses.retrieve(id, {
    stream: true,
    starting_after: Number(number),
  });
  console.log(JSON.stringify(await all(stream)));
}

// OpenAI's Node SDK as it is: a stream that breaks is gone on with, now or after a restart.
import OpenAI from 'openai';

const client = new OpenAI();
const asked = { model: 'eliza', input: 'I want to learn to swim', stream: true };
let id, seen;
for await (const event of await client.responses.create(asked)) {
  id ??= event.response.id;
  seen = event.sequence_number;
  if (seen === 3) break; // the connection is lost
}
for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: seen })) {
  if (event.type === 'response.output_text.delta') process.stdout.write(event.delta);
}
console.log(` (${id})`);

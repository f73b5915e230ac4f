// Conversations and their items, by the official SDK.

import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { MODEL, all, client, failure, test, textOf } from './sdk.mjs';

const { conversations } = client;
const said = (content) => ({ type: 'message', role: 'user', content });

test('made, read, changed, deleted', async () => {
  const made = await conversations.create({ metadata: { a: 'b' }, items: [said('hello')] });
  assert.equal(made.object, 'conversation');
  assert.deepEqual(await conversations.retrieve(made.id), made);
  const changed = await conversations.update(made.id, { metadata: { c: 'd' } });
  assert.deepEqual(changed.metadata, { c: 'd' });
  assert.equal((await conversations.delete(made.id)).deleted, true);
  assert.ok((await failure(conversations.retrieve(made.id))) instanceof OpenAI.NotFoundError);
});

test('responses are made in it, one after the other, and their items are its items', async () => {
  const { id } = await conversations.create();
  await Promise.all(
    ['one', 'two', 'three'].map((input) =>
      client.responses.create({ model: MODEL, input, conversation: id }),
    ),
  );
  const items = textOf(await all(conversations.items.list(id, { order: 'asc' })));
  assert.equal(items.length, 6);
  for (let n = 0; n < 6; n += 2) assert.equal(items[n + 1], `You said: ${items[n]}`);
});

test('items are added, read, deleted', async () => {
  const { id } = await conversations.create();
  const added = await conversations.items.create(id, { items: [said('one'), said('two')] });
  assert.deepEqual(textOf(added.data), ['one', 'two']);
  const [first, second] = added.data;
  const read = await conversations.items.retrieve(first.id, { conversation_id: id });
  assert.deepEqual(read, first);
  const left = await conversations.items.delete(first.id, { conversation_id: id });
  assert.equal(left.id, id);
  assert.deepEqual(await all(conversations.items.list(id)), [second]);
});

for (const order of ['asc', 'desc']) {
  test(`items page by page, ${order}, while more are added`, async () => {
    const words = ['a', 'b', 'c', 'd', 'e'];
    const { id } = await conversations.create({ items: words.map(said) });
    const found = [];
    for await (const item of conversations.items.list(id, { limit: 2, order })) {
      found.push(item);
      if (found.length === 3) await conversations.items.create(id, { items: [said('late')] });
    }
    assert.deepEqual(textOf(found), order === 'asc' ? [...words, 'late'] : words.toReversed());
  });
}

test('the list of them, which is ours', async () => {
  const { id } = await conversations.create();
  const listed = await client.get('/conversations', { query: { limit: 100 } });
  assert.ok(listed.data.some((conversation) => conversation.id === id));
});

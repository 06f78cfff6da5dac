// A third-party OAuth server, oidc-provider, and an API that validates tokens with it. Prints its port
// and a first refresh token. scripts/interop copies this file next to the node_modules of oidc-provider.
import { createServer } from 'node:http';
import { Provider } from 'oidc-provider';

const { CLIENT_ID: client_id, CLIENT_SECRET: client_secret } = process.env;
const scope = 'openid offline_access';

const server = createServer();
server.listen(0, '127.0.0.1', async () => {
  const { port } = server.address();
  const provider = new Provider(`http://127.0.0.1:${port}`, {
    clients: [{
      client_id,
      client_secret,
      grant_types: ['authorization_code', 'refresh_token'],
      redirect_uris: ['http://127.0.0.1/callback'],
      token_endpoint_auth_method: 'client_secret_basic',
    }],
    findAccount: (_, accountId) => ({ accountId, claims: () => ({ sub: accountId }) }),
    issueRefreshToken: () => true,
    // A refresh token that is used twice revokes the whole grant.
    rotateRefreshToken: true,
    ttl: { AccessToken: 2, Grant: 3600, IdToken: 60, RefreshToken: 3600 },
  });
  const oauth = provider.callback();
  server.on('request', (request, response) =>
    request.url.startsWith('/api') ? api(provider, request, response) : oauth(request, response));
  console.log(port, await firstRefreshToken(provider));
});

async function api(provider, request, response) {
  const [scheme, value] = (request.headers.authorization ?? '').split(' ');
  const token = scheme === 'Bearer' && await provider.AccessToken.find(value);
  response.writeHead(token ? 200 : 401).end();
}

// Replaces the login of a user.
async function firstRefreshToken(provider) {
  const person = { accountId: 'demo', client: await provider.Client.find(client_id) };
  const grant = new provider.Grant({ accountId: person.accountId, clientId: client_id });
  grant.addOIDCScope(scope);
  const grantId = await grant.save();
  return new provider.RefreshToken({ ...person, grantId, scope, gty: 'authorization_code' }).save();
}

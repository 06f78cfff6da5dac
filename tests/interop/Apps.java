import java.net.HttpURLConnection;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.HexFormat;

/** Java clients: HttpURLConnection, and HttpClient, which requests an upgrade to h2c by default. */
public class Apps {
    static String expected;

    public static void main(String[] arguments) throws Exception {
        URI url = URI.create(arguments[0]);
        byte[] body = Files.readAllBytes(Path.of(arguments[1]));
        expected = HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(body));
        for (boolean chunked : new boolean[] {false, true, false}) {
            HttpURLConnection connection = (HttpURLConnection) url.toURL().openConnection();
            connection.setRequestMethod("POST");
            connection.setDoOutput(true);
            if (chunked) {
                connection.setChunkedStreamingMode(10_000);
            } else {
                connection.setFixedLengthStreamingMode(body.length);
            }
            connection.getOutputStream().write(body);
            check("HttpURLConnection", connection.getResponseCode(), new String(connection.getInputStream().readAllBytes()));
        }
        for (HttpClient.Version version : HttpClient.Version.values()) {
            HttpClient client = HttpClient.newBuilder().version(version).build();
            HttpRequest.Builder request = HttpRequest.newBuilder(url);
            for (boolean expects : new boolean[] {false, true}) {
                HttpRequest upload = request.copy().POST(HttpRequest.BodyPublishers.ofByteArray(body)).expectContinue(expects).build();
                HttpResponse<String> response = client.send(upload, HttpResponse.BodyHandlers.ofString());
                check("HttpClient " + version + " " + expects, response.statusCode(), response.body());
            }
        }
    }

    static void check(String what, int status, String response) {
        if (status != 200 || !response.contains(expected)) {
            System.err.println(what + ": " + status + " " + response);
            System.exit(1);
        }
    }
}
